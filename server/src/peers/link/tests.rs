//! Proves which of a peer's addresses is taken, what a load is expected to take over some connections, and
//! for how long a peer is left alone.

use super::*;
use crate::metrics::Metrics;
use tokio::net::TcpListener;

/// Of a node with the config that nobody wrote.
pub(in crate::peers) fn common() -> Arc<Common> {
    let (runtime, data) = (Handle::current(), Handle::current());
    let (config, clock) = (PeersConfig::default(), Clock::system());
    let fetches = Metrics::new().fetches;
    Arc::new(Common { tls: None, config, secret: [0; 32], clock, runtime, data, fetches })
}

#[tokio::test]
async fn a_peer_is_reached_at_whichever_of_its_addresses_it_listens() {
    let link = Link::new("peer:1".parse().unwrap(), &common());
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let there = listener.local_addr().unwrap();
    // Nobody is at the first, and the second may not be talked to in plain text.
    let closed = SocketAddr::from(([127, 0, 0, 1], 1));
    let beyond = SocketAddr::from(([192, 0, 2, 1], there.port()));
    let (found, _stream) = link.open([closed, beyond, there].into_iter()).await.unwrap();
    assert_eq!(found, there);
    let refused = link.open([closed].into_iter()).await.unwrap_err();
    assert!(matches!(refused, LinkError::Connect { .. }), "{refused}");
    let refused = link.open([closed, beyond].into_iter()).await.unwrap_err();
    assert!(matches!(refused, LinkError::PlainText { .. }), "{refused}");
    let nowhere = link.open(std::iter::empty()).await.unwrap_err();
    assert!(matches!(nowhere, LinkError::Resolve { .. }), "{nowhere}");
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

#[test]
fn a_peer_is_left_alone_for_longer_each_time_that_follows_and_after_a_quiet_time_for_a_moment_again()
 {
    let start = Instant::now();
    let mut rest = Rest::default();
    let mut now = start;
    let mut pauses = Vec::new();
    for _ in 0..7 {
        rest.begin(now, PAUSE_MIN);
        // Others that find out the same meanwhile change nothing.
        rest.begin(now + PAUSE_MIN / 2, PAUSE_MIN);
        pauses.push(rest.pause.as_millis());
        now = rest.until.unwrap();
        assert!(!rest.is_on(now) && rest.is_on(now.checked_sub(PAUSE_MIN / 2).unwrap()));
    }
    assert_eq!(pauses, [100, 200, 400, 800, 1600, 3000, 3000]);
    now += PAUSE;
    rest.begin(now, PAUSE_MIN);
    assert_eq!(rest.pause, PAUSE_MIN);
    // What an operator must mend is no matter of patience.
    rest.begin(now, LONG_PAUSE);
    assert_eq!(rest.until, Some(now + LONG_PAUSE));
    rest.begin(now + LONG_PAUSE, PAUSE_MIN);
    assert_eq!(rest.pause, PAUSE);
}
