//! Programs that must not compile: each would break a rule about credits, permits or connections.
//!
//! After a new compiler words its errors differently, `TRYBUILD=overwrite cargo test --test compile_fail` renews the
//! expected texts; look at the difference.

#[test]
fn what_must_not_compile() {
    trybuild::TestCases::new().compile_fail("tests/compile_fail/*.rs");
}
