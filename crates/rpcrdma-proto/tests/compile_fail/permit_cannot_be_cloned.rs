//! One permit is one Call.
use rpcrdma_proto::rpcrdma::{credits::Account, requester::{ConnectionId, Requester}};

fn main() {
    let mut account = Account::new(8);
    account.receive_posted();
    let permit = account.permit().unwrap();
    let _two = (permit.clone(), permit);

    let mut requester = Requester::new(ConnectionId(1), 8);
    requester.receive_posted();
    let permit = requester.permit().unwrap();
    let _two = (permit.clone(), permit);
}
