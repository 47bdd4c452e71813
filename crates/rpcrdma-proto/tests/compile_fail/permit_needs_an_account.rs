//! Nobody can make a permit but the account, which wants a Receive and a credit.
use rpcrdma_proto::rpcrdma::credits::{Account, Permit};

fn main() {
    let mut account = Account::new(8);
    let _permit = Permit { account: &mut account };
}
