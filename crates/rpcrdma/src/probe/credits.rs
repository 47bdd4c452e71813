//! Grants, and what a client may have outstanding.

use rpcrdma_proto::rpcrdma::{Body, ChunkLists, Credits, Header};

use super::{
    Check, Group, Judged, Probe, conforms, deviates, tolerated,
    wire::{Halt, Seen, Wire, message, next_xid, null, raw_message},
};

const GROUP: Group = Group::Credits;

pub(super) const CHECKS: [Check; 5] = [
    GROUP
        .check("first-grant", "the grant of the first Reply", "RFC 8166 3.3.1", |p| Box::pin(first_grant(p))),
    GROUP.check("later-grants", "the grants of later Replies", "RFC 8166 3.3.1", |p| {
        Box::pin(later_grants(p))
    }),
    GROUP.check("full-window", "as many Calls at once as were granted", "RFC 8166 3.3.1", |p| {
        Box::pin(full_window(p))
    }),
    GROUP.check(
        "early-second-call",
        "a second Call before the first Reply, which no client may send",
        "RFC 8166 3.3.3",
        |p| Box::pin(early_second_call(p)),
    ),
    GROUP.check("zero-credits", "a Call that asks for 0 credits", "RFC 8166 3.3.1", |p| {
        Box::pin(zero_credits(p))
    }),
];

/// Most Calls that a window is filled with.
const WINDOW: u32 = 512;

async fn first_grant(probe: &Probe) -> Result<Judged, Halt> {
    let mut wire = probe.connect(8, false).await?;
    Ok(match wire.null().await? {
        Ok(Credits(0)) => deviates("0 credits, with which no Call could ever be sent"),
        Ok(Credits(n)) => conforms(format!("{n} for the 128 asked for")),
        Err(seen) => deviates(format!("a NULL Call was answered by {seen}")),
    })
}

async fn later_grants(probe: &Probe) -> Result<Judged, Halt> {
    let (mut wire, first) = probe.open(8, false).await?;
    let mut grants = vec![first.0];
    for _ in 0..16 {
        match wire.null().await? {
            Ok(grant) => grants.push(grant.0),
            Err(seen) => {
                return Ok(deviates(format!("Call {} was answered by {seen}", grants.len() + 1)));
            }
        }
    }
    let (least, most) =
        (grants.iter().min().copied().unwrap_or_default(), grants.iter().max().copied().unwrap_or_default());
    Ok(if least == 0 {
        deviates("0 credits in one of 17 Replies")
    } else if least == most {
        conforms(format!("always {most}"))
    } else {
        conforms(format!("{least} to {most} in 17 Replies"))
    })
}

fn null_call() -> Vec<u8> {
    let xid = next_xid();
    message(xid, Body::Msg(ChunkLists::default()), &null(xid))
}

/// Sends so many NULL Calls at once; returns how many were answered, and what came instead of the others.
pub(super) async fn burst(wire: &mut Wire, calls: u32) -> Result<(u32, Option<Seen>), Halt> {
    for _ in 0..calls {
        wire.send(&null_call())?;
    }
    for answered in 0..calls {
        match wire.seen().await.1 {
            Seen::Reply(_) => {}
            other => return Ok((answered, Some(other))),
        }
    }
    Ok((calls, None))
}

async fn full_window(probe: &Probe) -> Result<Judged, Halt> {
    let (mut wire, grant) = probe.open(WINDOW as usize + 8, false).await?;
    let calls = grant.window().min(WINDOW);
    Ok(match burst(&mut wire, calls).await? {
        (n, None) => conforms(format!("all {n} are answered")),
        (n, Some(other)) => deviates(format!("{n} of {calls} are answered, then {other}")),
    })
}

async fn early_second_call(probe: &Probe) -> Result<Judged, Halt> {
    let mut wire = probe.connect(8, false).await?;
    Ok(match burst(&mut wire, 2).await? {
        (_, None) => tolerated("both are answered"),
        // It is for the server to say how much of it it takes.
        (n, Some(other)) => conforms(format!("{n} of 2 answered, then {other}")),
    })
}

async fn zero_credits(probe: &Probe) -> Result<Judged, Halt> {
    let mut wire = probe.ready().await?;
    let xid = next_xid();
    let header = Header::new(xid, Credits(0), Body::Msg(ChunkLists::default()));
    Ok(match wire.exchange(xid, &raw_message(&header, &null(xid))).await? {
        Seen::Reply(reply) if reply.header.credit.0 == 0 => deviates("answered, with 0 credits granted"),
        Seen::Reply(reply) => tolerated(format!("answered, with {} credits granted", reply.header.credit.0)),
        other => conforms(format!("answered by {other}")),
    })
}
