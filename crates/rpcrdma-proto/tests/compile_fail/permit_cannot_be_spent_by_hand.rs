//! A permit is spent by the one that writes the Call's header, and by nobody else.
use rpcrdma_proto::rpcrdma::credits::Account;

fn main() {
    let mut account = Account::new(8);
    account.receive_posted();
    account.permit().unwrap().spend();
}
