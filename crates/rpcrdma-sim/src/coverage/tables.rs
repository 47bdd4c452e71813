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
        Table::new("Requester", REQUESTER, RARE_REQUESTER),
        Table::new("Responder", RESPONDER, RARE_RESPONDER),
        Table::new("Call in a server", CALL, RARE_CALL),
        Table::new("Client's end", CLIENT, RARE_CLIENT),
        Table::new("Server's end", SERVER, RARE_SERVER),
    ]
}

use {Account as A, Link as L, LinkEvent as E, Promise as P, PromiseEvent as Q, RequestEvent as R};

const REQUESTER: &[Never<A, R>] = &[
    Never {
        states: &[A::New],
        events: &[R::Foreign],
        why: "nothing is exposed, and a tag that stands for nothing is the fabric's to refuse",
    },
    Never {
        states: &[A::New, A::Idle],
        events: &[R::Opens, R::Keeps, R::Closes, R::Error, R::Broken],
        why: "no Call is outstanding, so what comes answers none",
    },
    Never {
        states: &[A::First],
        events: &[R::Call],
        why: "one Call is all that may be outstanding before the first Reply (RFC 8166 section 3.3.3)",
    },
    Never {
        states: &[A::First],
        events: &[R::Keeps, R::Closes],
        why: "the first grant opens a window that was not known",
    },
    Never {
        states: &[A::Full, A::Over],
        events: &[R::Call],
        why: "no more Calls than were granted (RFC 8166 section 3.3.1)",
    },
    Never {
        states: &[A::Bare],
        events: &[R::Call],
        why: "there is no permit without a Receive for the Reply (RFC 8166 section 3.3.1)",
    },
    Never { states: &[A::Lost], events: &[R::Loss], why: "a connection is lost once" },
];

const RESPONDER: &[Never<P, Q>] = &[
    Never {
        states: &[P::New, P::Idle],
        events: &[Q::Reply, Q::Error],
        why: "no Call is in hand, so there is nothing to answer",
    },
    Never {
        states: P::ALL,
        events: &[Q::Silent],
        why: "an execution takes no virtual time, so no copy meets it half way; threads do, in the crate rpcrdma",
    },
    Never { states: &[P::Lost], events: &[Q::NoReceive], why: "nothing arrives at an end that is lost" },
    Never { states: &[P::Lost], events: &[Q::Loss], why: "a connection is lost once" },
];

/// As [`Stage::next`] has it; a test compares them.
const CALL: &[Never<Stage, Step>] = &[
    Never {
        states: &[Stage::NeedBuffer, Stage::Reading],
        events: &[Step::Replied, Step::Sent],
        why: "a Call is executed before it is answered",
    },
    Never {
        states: &[Stage::Reading, Stage::Executing, Stage::Sending],
        events: &[Step::ReadsPosted],
        why: "a Call's chunks are pulled once",
    },
    Never {
        states: &[Stage::Executing, Stage::Sending],
        events: &[Step::Complete],
        why: "a Call is whole once",
    },
    Never { states: &[Stage::Sending], events: &[Step::Replied], why: "a Call is answered once" },
    Never { states: &[Stage::Done], events: &Step::ALL, why: "a Call that is done is forgotten" },
];

/// How a connection can be lost.
const LOSSES: &[E] = &[
    E::LostReset,
    E::LostTimeout,
    E::LostDevice,
    E::LostClosed,
    E::LostTerminated,
    E::LostMisbehaved,
    E::LostHere,
];

const CLIENT: &[Never<L, E>] = &[
    Never {
        states: &[L::New, L::Open, L::Closing, L::Lost],
        events: &[E::Made, E::NotMade],
        why: "whether there is a connection is decided once",
    },
    Never {
        states: &[L::Asked],
        events: &[
            E::Receive,
            E::Send,
            E::Exposed,
            E::NotExposed,
            E::Closed,
            E::Invalidated,
            E::Placed,
            E::Fetched,
            E::Done,
            E::Flushed,
            E::LostTimeout,
            E::LostHere,
            E::Cut,
            E::Goodbye,
        ],
        why: "the client has no queue pair to use yet, though its device has, and a server in a hurry may send",
    },
    Never {
        states: L::ALL,
        events: &[E::Data],
        why: "a client has no RDMA of its own: the server reads and writes",
    },
    Never {
        states: L::ALL,
        events: &[E::LostTerminated],
        why: "a client gives its server no reason to end the connection with an error",
    },
    Never {
        states: &[L::New],
        events: &[E::Closed],
        why: "the Calls of NFSv3 offer one region each, so none is taken back because a second one cannot be had",
    },
    Never {
        states: &[L::New, L::Open, L::Closing],
        events: &[E::Flushed],
        why: "work is flushed after the loss",
    },
    Never {
        states: &[L::New, L::Open],
        events: &[E::Dropped],
        why: "a client drops an end only after its loss or its goodbye",
    },
    Never {
        states: &[L::Closing],
        events: &[E::Receive, E::Send, E::Exposed, E::NotExposed, E::Cut, E::Goodbye],
        why: "after its goodbye a client only waits",
    },
    Never {
        states: &[L::Lost],
        events: &[
            E::Arrival,
            E::Closed,
            E::Invalidated,
            E::Placed,
            E::Fetched,
            E::NoReceive,
            E::Violation,
            E::Reset,
            E::Silence,
        ],
        why: "nothing reaches an end that is lost, and it makes no steps that could be faults",
    },
    Never { states: &[L::Lost], events: LOSSES, why: "a connection is lost once" },
];

const SERVER: &[Never<L, E>] = &[
    Never { states: L::ALL, events: &[E::NotMade], why: "only the client is told" },
    Never {
        states: L::ALL,
        events: &[E::Exposed, E::NotExposed, E::Closed, E::Invalidated, E::Placed, E::Fetched],
        why: "a server exposes no memory",
    },
    Never {
        states: &[L::Asked],
        events: &[
            E::Made,
            E::Receive,
            E::Send,
            E::Data,
            E::Arrival,
            E::Done,
            E::Flushed,
            E::NoReceive,
            E::Violation,
            E::LostReset,
            E::LostTimeout,
            E::LostDevice,
            E::LostClosed,
            E::LostTerminated,
            E::LostMisbehaved,
            E::LostHere,
            E::Cut,
            E::Goodbye,
            E::Dropped,
        ],
        why: "there is no queue pair yet",
    },
    Never {
        states: &[L::New],
        events: &[E::Receive, E::Send, E::Data, E::Done],
        why: "before the first message all Receives are posted, and there is nothing to do",
    },
    Never { states: &[L::New], events: &[E::NoReceive], why: "no Receive has been taken" },
    Never {
        states: &[L::New],
        events: &[E::LostTimeout, E::LostTerminated],
        why: "nothing was sent that could be missed or be wrong",
    },
    Never {
        states: &[L::New, L::Open, L::Closing],
        events: &[E::Flushed],
        why: "work is flushed after the loss",
    },
    Never { states: &[L::Closing], events: &[E::Goodbye], why: "it is said once" },
    Never {
        states: &[L::Lost],
        events: &[E::Arrival, E::NoReceive, E::Violation],
        why: "nothing reaches an end that is lost",
    },
    Never { states: &[L::Lost], events: LOSSES, why: "a connection is lost once" },
];

const RARE_REQUESTER: &[Never<A, R>] = &[
    Never {
        states: &[A::Bare],
        events: R::ALL,
        why: "the driver posts Receives after each batch of completions, so a window is bare only inside of one",
    },
    Never {
        states: &[A::Lost],
        events: &[R::Foreign],
        why: "the message has to have arrived just before the loss",
    },
];

const RARE_RESPONDER: &[Never<P, Q>] = &[
    Never {
        states: &[P::First, P::Idle, P::Busy, P::Full],
        events: &[Q::NoReceive],
        why: "a flood has to come while the server is told of nothing, and is mostly seen as one before the last Receive",
    },
    Never {
        states: &[P::First, P::Busy, P::Full],
        events: &[Q::Refused, Q::Dropped],
        why: "the server has mostly answered what came before",
    },
    Never {
        states: &[P::Lost],
        events: &[Q::Error],
        why: "the message has to have arrived just before the loss",
    },
];

const RARE_CALL: &[Never<Stage, Step>] = &[Never {
    states: &[Stage::Executing],
    events: &[Step::Sent],
    why: "the Reply has to fit into nothing that the client offers, which raw clients try in the test sim_odd_clients",
}];

/// What an end that has said goodbye seldom lives to see.
const IN_A_MOMENT: &[E] = &[
    E::Reset,
    E::Silence,
    E::Removal,
    E::Violation,
    E::NoReceive,
    E::LostReset,
    E::LostTimeout,
    E::LostDevice,
    E::LostMisbehaved,
    E::LostTerminated,
    E::Cut,
];

const RARE_CLIENT: &[Never<L, E>] = &[
    Never {
        states: &[L::Asked, L::New],
        events: &[E::NoReceive, E::LostClosed],
        why: "the server has to flood it, or to say goodbye, in the moment in which it accepts",
    },
    Never {
        states: &[L::Lost],
        events: &[E::Cut],
        why: "what the client cuts it for has to have arrived just before the loss",
    },
    Never {
        states: &[L::Closing],
        events: IN_A_MOMENT,
        why: "a goodbye is over in a moment, unless completions are late",
    },
];

const RARE_SERVER: &[Never<L, E>] = &[
    Never {
        states: &[L::Closing],
        events: IN_A_MOMENT,
        why: "a goodbye is over in a moment, unless completions are late",
    },
    Never {
        states: &[L::Closing],
        events: &[E::Made],
        why: "the client has to leave before the server has seen that the connection is made",
    },
    Never {
        states: &[L::Open],
        events: &[E::Dropped],
        why: "the first Call has to come and then silence, before the connection is confirmed",
    },
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_stages_of_a_call_are_those_of_the_responder() {
        for stage in Stage::ALL {
            for step in Step::ALL {
                let listed = CALL.iter().any(|n| n.states.contains(&stage) && n.events.contains(&step));
                assert_eq!(listed, stage.next(step).is_none(), "{step:?} in {stage:?}");
            }
        }
    }

    #[test]
    fn axes_have_an_order_and_distinct_names() {
        fn check<T: Axis>() {
            for (nth, item) in T::ALL.iter().enumerate() {
                assert_eq!(item.index(), nth);
                assert_eq!(T::ALL.iter().filter(|other| other.name() == item.name()).count(), 1);
            }
        }
        check::<Account>();
        check::<RequestEvent>();
        check::<Promise>();
        check::<PromiseEvent>();
        check::<Stage>();
        check::<Step>();
        check::<Link>();
        check::<LinkEvent>();
    }
}
