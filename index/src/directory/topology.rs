//! Which server answers for which slots, as the cluster says itself.

use super::answer::{integer, items, text};
use super::connection::Address;
use super::slots::SLOTS;
use redis::Value;

/// Who has a range of slots.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Shard {
    /// `first..=last`.
    pub(super) slots: Vec<(u16, u16)>,
    pub(super) master: Option<Address>,
    pub(super) replicas: Vec<Address>,
}

/// The answer to `CLUSTER SHARDS` of a server at `asked`; `None` where it is no such answer.
pub(super) fn parse(answer: &Value, asked: &str, tls: bool) -> Option<Vec<Shard>> {
    let shards: Option<Vec<_>> =
        items(answer)?.iter().map(|shard| parse_shard(shard, asked, tls)).collect();
    // A replica that has lost its master may be listed by itself.
    Some(shards?.into_iter().filter(|shard| !shard.slots.is_empty()).collect())
}

/// A server that is no part of a cluster has all slots.
pub(super) fn alone(address: &str) -> Vec<Shard> {
    let slots = vec![(0, SLOTS - 1)];
    vec![Shard { slots, master: Some(address.into()), replicas: Vec::new() }]
}

fn parse_shard(shard: &Value, asked: &str, tls: bool) -> Option<Shard> {
    let numbers: Option<Vec<u16>> = items(field(shard, "slots")?)?.iter().map(number).collect();
    let (ranges, rest) = numbers.as_ref()?.as_chunks::<2>();
    if !rest.is_empty() || ranges.iter().any(|[first, last]| first > last || *last >= SLOTS) {
        return None;
    }
    let slots = ranges.iter().map(|[first, last]| (*first, *last)).collect();
    let (mut parsed, mut others) = (Shard { slots, ..Shard::default() }, Vec::new());
    for node in items(field(shard, "nodes")?)? {
        let health = text(field(node, "health")?)?;
        let Some(address) = address(node, asked, tls) else { continue };
        match text(field(node, "role")?)? {
            // A master that failed is listed until it is back: it is asked last, not never.
            "master" if health != "online" && parsed.master.is_some() => {}
            "master" => parsed.master = Some(address),
            _ if health == "online" => parsed.replicas.push(address),
            _ => others.push(address),
        }
    }
    // They may be well again before they are asked about.
    parsed.replicas.append(&mut others);
    Some(parsed)
}

fn address(node: &Value, asked: &str, tls: bool) -> Option<Address> {
    let port = field(node, if tls { "tls-port" } else { "port" }).and_then(number)?;
    let known = |host: &&str| !host.is_empty() && *host != "?";
    let named = |name| field(node, name).and_then(text).filter(known);
    // A server that does not know its own address is where it was asked.
    let host =
        named("endpoint").or_else(|| named("ip")).or_else(|| Some(asked.rsplit_once(':')?.0))?;
    Some(join(host, port))
}

/// Of a redirection: `MOVED 3999 HOST:PORT`, without its first word.
pub(super) fn redirected(detail: &str, asked: &str) -> Option<Address> {
    let (host, port) = detail.split(' ').nth(1)?.rsplit_once(':')?;
    let port = port.parse().ok().filter(|port| *port != 0)?;
    let host = if host.is_empty() || host == "?" { asked.rsplit_once(':')?.0 } else { host };
    Some(join(host, port))
}

fn join(host: &str, port: u16) -> Address {
    let host = host.trim_start_matches('[').trim_end_matches(']');
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

/// What an answer says under `name`, in either version of the protocol.
fn field<'a>(value: &'a Value, name: &str) -> Option<&'a Value> {
    if let Value::Map(pairs) = value {
        return pairs.iter().find(|(key, _)| text(key) == Some(name)).map(|(_, value)| value);
    }
    let (pairs, _) = items(value)?.as_chunks::<2>();
    pairs.iter().find(|[key, _]| text(key) == Some(name)).map(|[_, value]| value)
}

fn number(value: &Value) -> Option<u16> {
    integer(value).and_then(|number| u16::try_from(number).ok())
}
