//! The tables: states, events, and the pairs that cannot be.

use rpcrdma::proto::rpcrdma::responder::{Stage, Step};

use super::{Axis, Never, Table};

macro_rules! axis {
    ($(#[$doc:meta])* $name:ident { $($(#[$item_doc:meta])* $item:ident = $text:literal,)+ }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum $name {
            $($(#[$item_doc])* $item,)+
        }

        impl Axis for $name {
            const ALL: &'static [Self] = &[$(Self::$item),+];

            fn index(self) -> usize {
                self as usize
            }

            fn name(self) -> &'static str {
                match self {
                    $(Self::$item => $text,)+
                }
            }
        }
    };
}

axis! {
    /// How a Requester's account of a connection stands (RFC 8166 section 3.3).
    Account {
        /// No Reply has come, and no Call is outstanding.
        New = "New",
        /// No Reply has come, and the one Call that may be is outstanding.
        First = "First",
        /// A grant is known, nothing is outstanding, and a Call may leave.
        Idle = "Idle",
        /// Some are outstanding, and another may leave.
        Open = "Open",
        /// The window has room, but no Receive is left over for another Reply.
        Bare = "Bare",
        /// As many are outstanding as may be.
        Full = "Full",
        /// More are outstanding than the grant, which has been lowered, allows by now.
        Over = "Over",
        /// The connection is lost, which its owner learns after the last completion.
        Lost = "Lost",
    }
}

axis! {
    /// What changes a Requester's account.
    RequestEvent {
        /// A Receive is posted.
        Receive = "Receive posted",
        /// A Call leaves.
        Call = "Call sent",
        /// A Reply makes the window wider.
        Opens = "Reply, window opens",
        /// A Reply leaves the window as it was.
        Keeps = "Reply, same window",
        /// A Reply makes the window narrower.
        Closes = "Reply, window closes",
        /// RDMA_ERROR ends a Call.
        Error = "RDMA_ERROR",
        /// A Reply that breaks a rule ends a Call.
        Broken = "broken Reply",
        /// A Reply that nobody waits for.
        Stray = "Reply to no Call",
        /// A message without a header that makes sense.
        Garbage = "garbage",
        /// A Call in the reverse direction.
        Reverse = "reverse Call",
        /// A message that had memory invalidated that is not its Call's.
        Foreign = "foreign invalidation",
        /// The connection is lost.
        Loss = "loss",
    }
}

axis! {
    /// How a Responder's account of a connection stands.
    Promise {
        /// No Reply has left, and no Call is in hand.
        New = "New",
        /// No Reply has left, and the first Call is in hand.
        First = "First",
        /// No Call is in hand.
        Idle = "Idle",
        /// Some are, and the client has credits left.
        Busy = "Busy",
        /// As many are in hand as were promised.
        Full = "Full",
        /// More are, because the client does not keep to its grant.
        Flooded = "Flooded",
        /// The connection is lost, which its owner learns after the last completion.
        Lost = "Lost",
    }
}

axis! {
    /// What changes a Responder's account.
    PromiseEvent {
        /// A Receive is posted.
        Receive = "Receive posted",
        /// A Call is taken in hand.
        Call = "Call",
        /// A message that is answered with RDMA_ERROR is.
        Refused = "bad Call",
        /// A message comes that is not answered.
        Dropped = "no Call at all",
        /// A Reply leaves.
        Reply = "Reply sent",
        /// RDMA_ERROR leaves.
        Error = "RDMA_ERROR sent",
        /// A copy of a Call that is being executed is forgotten.
        Silent = "copy forgotten",
        /// A message comes and finds no Receive.
        NoReceive = "no Receive",
        /// The connection is lost.
        Loss = "loss",
    }
}

axis! {
    /// How far an end of a connection is in its life.
    Link {
        /// It is asked for.
        Asked = "Asked",
        /// It is there; the client has no Reply yet, the server no Call.
        New = "New",
        /// There has been one.
        Open = "Open",
        /// This end has said goodbye, and waits for what is posted.
        Closing = "Closing",
        /// It is lost; completions still come.
        Lost = "Lost",
    }
}

axis! {
    /// What happens to an end of a connection.
    LinkEvent {
        /// It can be used.
        Made = "made",
        /// It is not made.
        NotMade = "not made",
        /// A Receive is posted.
        Receive = "Receive posted",
        /// A message is posted.
        Send = "Send posted",
        /// An RDMA Read or Write is posted.
        Data = "RDMA posted",
        /// A message arrives.
        Arrival = "message arrives",
        /// A region is exposed.
        Exposed = "region exposed",
        /// A region cannot be exposed.
        NotExposed = "not exposed",
        /// A region is closed by this end.
        Closed = "closed here",
        /// A region is closed by the peer's Send.
        Invalidated = "closed by peer",
        /// The peer writes to a region.
        Placed = "peer writes",
        /// The peer reads from a region.
        Fetched = "peer reads",
        /// Work is done.
        Done = "work done",
        /// Work or a Receive is flushed.
        Flushed = "work flushed",
        /// A message finds no Receive.
        NoReceive = "no Receive",
        /// The peer breaks a rule of the fabric.
        Violation = "violation",
        /// The network resets it.
        Reset = "fault: reset",
        /// The network swallows everything from now on.
        Silence = "fault: silence",
        /// A device goes away.
        Removal = "fault: removal",
        /// It is lost: reset.
        LostReset = "lost: reset",
        /// It is lost: the transport waits no longer for the peer.
        LostTimeout = "lost: time-out",
        /// It is lost: the device is gone.
        LostDevice = "lost: device",
        /// It is lost: the peer said goodbye.
        LostClosed = "lost: goodbye",
        /// It is lost: the peer ended it with an error.
        LostTerminated = "lost: terminated",
        /// It is lost: the peer broke a rule.
        LostMisbehaved = "lost: violation",
        /// It is lost: this end closed it.
        LostHere = "lost: closed here",
        /// This end cuts it.
        Cut = "cut here",
        /// This end says goodbye.
        Goodbye = "goodbye said",
        /// This end is dropped.
        Dropped = "dropped",
    }
}

impl Axis for Stage {
    const ALL: &'static [Self] = &Stage::ALL;

    fn index(self) -> usize {
        self as usize
    }

    fn name(self) -> &'static str {
        match self {
            Self::NeedBuffer => "Need buffer",
            Self::Reading => "Reading",
            Self::Executing => "Executing",
            Self::Sending => "Sending",
            Self::Done => "Done",
        }
    }
}

impl Axis for Step {
    const ALL: &'static [Self] = &Step::ALL;

    fn index(self) -> usize {
        self as usize
    }

    fn name(self) -> &'static str {
        match self {
            Self::ReadsPosted => "Reads posted",
            Self::Complete => "complete",
            Self::Replied => "Reply posted",
            Self::Sent => "Reply gone",
            Self::Flushed => "connection gone",
        }
    }
}

pub(super) fn all() -> Vec<Table> {
    vec![
        Table::new("Requester", REQUESTER),
        Table::new("Responder", RESPONDER),
        Table::new("Call in a server", CALL),
        Table::new("Client's end", CLIENT),
        Table::new("Server's end", SERVER),
    ]
}

const REQUESTER: &[Never<Account, RequestEvent>] = &[];
const RESPONDER: &[Never<Promise, PromiseEvent>] = &[];
const CALL: &[Never<Stage, Step>] = &[];
const CLIENT: &[Never<Link, LinkEvent>] = &[];
const SERVER: &[Never<Link, LinkEvent>] = &[];
