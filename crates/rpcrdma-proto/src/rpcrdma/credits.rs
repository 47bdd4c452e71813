//! Credits: who may send a Call now, and what a Responder may promise (RFC 8166 section 3.3).
//!
//! # Operation
//! The Requester's side is an [`Account`]. It counts the Receives that are posted on this connection, the Calls that
//! are outstanding, and the latest grant. A Call leaves only by consuming a [`Permit`], and [`Account::permit`] makes
//! one only while *both* hold: the window has room, and a posted Receive is left over for this Call's Reply. So the
//! order in which a driver handles a Reply does not matter: a raised grant that is not yet backed by Receives opens
//! nothing.
//!
//! The Responder's side is [`Promises`]. It counts posted Receives, Calls in hand, and the largest grant ever sent,
//! and says which grant the next Reply may carry: never more than Receives can take.
//!
//! # One connection
//! Both are born with a connection and die with it; there is no way to reset one. A permit borrows its account, so it
//! cannot be kept, let alone carried to the next connection. On a new connection no grant is known, and the window is
//! one Call until the first Reply brings one (RFC 8166 section 3.3.3).

/// The Requester's account of one connection.
#[derive(Debug)]
pub struct Account {
    /// What every Call asks for; our own ceiling too.
    requested: u32,
    /// The latest grant; `None` until the first Reply.
    granted: Option<u32>,
    /// Calls sent and not answered.
    outstanding: u32,
    /// Receives posted and not consumed.
    posted: u32,
}

impl Account {
    /// The account of a new connection. Asking for 0 credits is read as asking for 1.
    #[must_use]
    pub fn new(requested: u32) -> Self {
        Self { requested: requested.max(1), granted: None, outstanding: 0, posted: 0 }
    }

    /// What every Call asks for.
    #[must_use]
    pub fn requested(&self) -> u32 {
        self.requested
    }

    /// The latest grant; `None` before the first Reply of the connection.
    #[must_use]
    pub fn granted(&self) -> Option<u32> {
        self.granted
    }

    /// Calls that may be outstanding: one until a grant is known, then the smaller of what was asked and granted. A
    /// grant of 0 would be a deadlock and is read as 1, as Linux does.
    #[must_use]
    pub fn window(&self) -> u32 {
        self.granted.map_or(1, |g| g.clamp(1, self.requested))
    }

    /// Calls sent and not answered.
    #[must_use]
    pub fn outstanding(&self) -> u32 {
        self.outstanding
    }

    /// Receives posted and not consumed.
    #[must_use]
    pub fn posted(&self) -> u32 {
        self.posted
    }

    /// A Receive has been posted on this connection.
    pub fn receive_posted(&mut self) {
        self.posted = self.posted.saturating_add(1);
    }

    /// A message has consumed a Receive.
    pub fn receive_consumed(&mut self) {
        debug_assert!(self.posted > 0, "a message arrived without a Receive");
        self.posted = self.posted.saturating_sub(1);
    }

    /// A Reply with this grant has retired a Call.
    pub fn retire(&mut self, grant: u32) {
        debug_assert!(self.outstanding > 0, "a Reply retired a Call that was not outstanding");
        self.outstanding = self.outstanding.saturating_sub(1);
        self.granted = Some(grant);
    }

    /// The right to send one Call, if there is one now.
    pub fn permit(&mut self) -> Option<Permit<'_>> {
        let room = self.outstanding < self.window();
        let covered = self.posted > self.outstanding;
        (room && covered).then_some(Permit { account: self })
    }
}

/// The right to send one Call on one connection. Dropped unspent, nothing has happened.
#[must_use = "a permit that is dropped sends nothing"]
#[derive(Debug)]
pub struct Permit<'a> {
    account: &'a mut Account,
}

impl Permit<'_> {
    /// What the Call asks for.
    #[must_use]
    pub fn requested(&self) -> u32 {
        self.account.requested
    }

    /// The Call is in the Send queue.
    pub(crate) fn spend(self) {
        self.account.outstanding += 1;
    }
}

/// Receives beyond the grant, for messages that are not Calls.
const SPARE: u32 = 2;

/// The Responder's account of one connection.
#[derive(Debug)]
pub struct Promises {
    /// What we would like to grant.
    wanted: u32,
    /// The largest grant that a Reply has carried; 1 from the start, because a client may always send one Call.
    promised: u32,
    /// Receives posted and not consumed.
    posted: u32,
    /// Calls received and not answered.
    held: u32,
}

/// A Reply may not leave: no Receive is posted for the Call that it allows, or too few for those allowed before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoReceive;

impl core::fmt::Display for NoReceive {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("a Reply may not leave before Receives are posted for the Calls that it allows")
    }
}

impl core::error::Error for NoReceive {}

impl Promises {
    /// The account of a new connection that would like to grant `wanted` credits.
    #[must_use]
    pub fn new(wanted: u32) -> Self {
        Self { wanted: wanted.max(1), promised: 1, posted: 0, held: 0 }
    }

    /// A Receive has been posted.
    pub fn receive_posted(&mut self) {
        self.posted = self.posted.saturating_add(1);
    }

    /// A message has consumed a Receive.
    pub fn receive_consumed(&mut self) {
        debug_assert!(self.posted > 0, "a message arrived without a Receive");
        self.posted = self.posted.saturating_sub(1);
    }

    /// The message was a Call, which is now in our hands. `false` if the client had no credit for it.
    pub fn hold(&mut self) -> bool {
        self.held = self.held.saturating_add(1);
        self.held <= self.promised
    }

    /// Calls received and not answered.
    #[must_use]
    pub fn held(&self) -> u32 {
        self.held
    }

    /// Receives posted and not consumed.
    #[must_use]
    pub fn posted(&self) -> u32 {
        self.posted
    }

    /// Receives to post now. Together with the Calls in hand they cover every promise and the wanted grant, with a few
    /// to spare for messages that are not Calls. A client that floods us finds no more than that: Calls in hand are not
    /// replaced until they are answered.
    #[must_use]
    pub fn receives_wanted(&self) -> u32 {
        self.target().saturating_sub(self.posted.saturating_add(self.held))
    }

    /// Receives to post before one of the Calls in hand is answered: its credit goes back to the client with the Reply,
    /// so its Receive has to be there first.
    #[must_use]
    pub fn receives_wanted_to_answer(&self) -> u32 {
        self.target().saturating_sub(self.posted.saturating_add(self.held.saturating_sub(1)))
    }

    fn target(&self) -> u32 {
        self.wanted.max(self.promised).saturating_add(SPARE)
    }

    /// Changes what later Replies grant. Lowering it does not shrink what has been promised: Calls under the old grant
    /// may be on their way.
    pub fn set_wanted(&mut self, wanted: u32) {
        self.wanted = wanted.max(1);
    }

    /// Answers one Call in hand: the grant for its Reply. The other Calls in hand have no Receive yet, but each gets
    /// one before its own Reply, so they count.
    ///
    /// # Errors
    /// [`NoReceive`] when nothing is posted that could take even one Call, or what is posted would no longer cover what
    /// earlier Replies have promised; post first.
    pub fn answer(&mut self) -> Result<u32, NoReceive> {
        let held = self.held.saturating_sub(1);
        let covered = self.posted.saturating_add(held);
        if self.posted == 0 || covered < self.promised {
            return Err(NoReceive);
        }
        self.held = held;
        let grant = self.wanted.min(covered);
        self.promised = self.promised.max(grant);
        Ok(grant)
    }

    /// Drops a Call in hand that will not be answered, because its connection is going away.
    pub fn abandon(&mut self) {
        self.held = self.held.saturating_sub(1);
    }

    /// Whether the posted Receives cover what has been promised.
    #[must_use]
    pub fn covered(&self) -> bool {
        self.posted >= self.promised.saturating_sub(self.held)
    }
}

#[cfg(test)]
mod tests {
    use alloc::string::ToString as _;

    use super::*;

    fn account(requested: u32, posted: u32) -> Account {
        let mut a = Account::new(requested);
        (0..posted).for_each(|_| a.receive_posted());
        a
    }

    #[test]
    fn one_call_until_the_first_reply() {
        let mut a = account(64, 64);
        a.permit().unwrap().spend();
        assert!(a.permit().is_none());
        a.receive_consumed();
        a.retire(32);
        let sent = core::iter::from_fn(|| a.permit().map(Permit::spend)).count();
        assert_eq!(sent, 32);
    }

    #[test]
    fn what_is_asked_for_and_granted_can_be_seen() {
        let mut a = account(64, 2);
        assert_eq!((a.requested(), a.granted()), (64, None));
        let permit = a.permit().unwrap();
        assert_eq!(permit.requested(), 64);
        permit.spend();
        a.receive_consumed();
        a.retire(7);
        assert_eq!((a.requested(), a.granted()), (64, Some(7)));
        assert_eq!(Account::new(0).requested(), 1);
    }

    #[test]
    fn a_grant_without_receives_opens_nothing() {
        let mut a = account(64, 1);
        a.permit().unwrap().spend();
        a.receive_consumed();
        a.retire(32);
        assert!(a.permit().is_none(), "the window is 32, but no Receive is posted");
        a.receive_posted();
        a.receive_posted();
        assert_eq!(core::iter::from_fn(|| a.permit().map(Permit::spend)).count(), 2);
    }

    #[test]
    fn a_permit_that_is_not_spent_costs_nothing() {
        let mut a = account(64, 1);
        let _ = a.permit().expect("one Receive, one permit");
        assert!(a.permit().is_some(), "nothing was spent");
        assert_eq!(a.outstanding(), 0);
    }

    #[test]
    fn the_window_is_what_was_asked_and_granted() {
        let mut a = account(8, 100);
        for (grant, window) in [(0, 1), (1, 1), (5, 5), (8, 8), (9, 8), (u32::MAX, 8)] {
            a.permit().unwrap().spend();
            a.receive_consumed();
            a.retire(grant);
            assert_eq!(a.window(), window, "grant {grant}");
        }
    }

    #[test]
    fn a_lowered_grant_holds_calls_back_until_it_is_met() {
        let mut a = account(8, 100);
        a.permit().unwrap().spend();
        a.receive_consumed();
        a.retire(8);
        while let Some(p) = a.permit() {
            p.spend();
        }
        assert_eq!(a.outstanding(), 8);
        for left in (2..8).rev() {
            a.receive_consumed();
            a.retire(2);
            assert_eq!(a.outstanding(), left);
            assert!(a.permit().is_none());
        }
        a.receive_consumed();
        a.retire(2);
        assert!(a.permit().is_some());
    }

    #[test]
    fn a_responder_promises_what_it_has_posted() {
        let mut p = Promises::new(64);
        for _ in 0..4 {
            p.receive_posted();
        }
        p.receive_consumed();
        assert!(p.hold());
        assert_eq!(p.answer(), Ok(3));
        assert!(p.covered());
        assert_eq!(p.receives_wanted(), 63, "64 and 2 to spare, and 3 are posted");
    }

    #[test]
    fn no_reply_leaves_without_a_receive_for_the_next_call() {
        let mut p = Promises::new(64);
        assert!(!p.covered(), "one Call is promised from the start");
        p.receive_posted();
        assert!(p.covered());
        p.receive_consumed();
        p.hold();
        assert_eq!(p.held(), 1);
        assert_eq!(p.answer(), Err(NoReceive));
        assert!(NoReceive.to_string().contains("Receives"));
        p.receive_posted();
        assert_eq!(p.answer(), Ok(1));
    }

    #[test]
    fn no_reply_leaves_what_was_promised_uncovered() {
        let mut p = Promises::new(4);
        (0..4).for_each(|_| p.receive_posted());
        p.receive_consumed();
        p.hold();
        p.receive_posted();
        assert_eq!(p.answer(), Ok(4));
        (0..2).for_each(|_| {
            p.receive_consumed();
            p.hold();
        });
        // Two are posted and one would be left in hand: a Call short of the four that the client may send.
        assert_eq!(p.answer(), Err(NoReceive));
        p.receive_posted();
        assert_eq!(p.answer(), Ok(4));
        assert!(p.covered());
    }

    #[test]
    fn calls_in_hand_count_towards_the_grant() {
        let mut p = Promises::new(3);
        (0..3).for_each(|_| p.receive_posted());
        p.receive_consumed();
        assert!(p.hold());
        p.receive_posted();
        assert_eq!(p.answer(), Ok(3));
        (0..3).for_each(|_| {
            p.receive_consumed();
            assert!(p.hold());
        });
        p.receive_posted();
        assert_eq!(p.answer(), Ok(3));
        assert!(p.covered());
    }

    #[test]
    fn calls_in_hand_are_not_replaced_before_they_are_answered() {
        let mut p = Promises::new(4);
        (0..6).for_each(|_| p.receive_posted());
        for _ in 0..6 {
            p.receive_consumed();
            p.hold();
            assert_eq!(p.receives_wanted(), 0);
            assert_eq!(p.receives_wanted_to_answer(), 1);
        }
    }

    #[test]
    fn a_call_beyond_the_grant_is_noticed() {
        let mut p = Promises::new(2);
        (0..4).for_each(|_| p.receive_posted());
        p.receive_consumed();
        assert!(p.hold());
        p.receive_consumed();
        assert!(!p.hold(), "one Call until the first Reply");
    }

    #[test]
    fn a_lowered_grant_keeps_its_receives() {
        let mut p = Promises::new(8);
        (0..8).for_each(|_| p.receive_posted());
        p.receive_consumed();
        p.hold();
        p.receive_posted();
        assert_eq!(p.answer(), Ok(8));
        p.set_wanted(1);
        p.receive_consumed();
        p.hold();
        assert_eq!(p.receives_wanted(), 2, "8 promised and 2 to spare; 7 posted and 1 in hand");
        assert_eq!(p.receives_wanted_to_answer(), 3, "what was promised stays covered");
        p.receive_posted();
        assert_eq!(p.answer(), Ok(1));
        assert!(p.covered());
    }
}
