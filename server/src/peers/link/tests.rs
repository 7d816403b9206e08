//! Proves what a load is expected to take over some connections.

use super::*;

/// Of a node with the config that nobody wrote.
pub(in crate::peers) fn common() -> Arc<Common> {
    let (runtime, data) = (Handle::current(), Handle::current());
    let (config, clock) = (PeersConfig::default(), Clock::system());
    Arc::new(Common { tls: None, config, secret: [0; 32], clock, runtime, data })
}

#[tokio::test]
async fn a_load_over_several_connections_is_expected_as_fast_as_all_of_them() {
    let link = Link::new("10.0.0.1:1".parse().unwrap(), &common());
    let expected = |bytes: u64| link.expected(bytes, 0, Duration::ZERO).as_millis();
    assert_eq!(expected(1_000_000_000), 1000, "nobody has measured it");
    link.learn(1 << 20, Duration::from_secs(1));
    assert_eq!(expected(4 << 20), 4000, "it goes over one");
    assert_eq!(expected(64 << 20), 16_000, "it goes over four");
}
