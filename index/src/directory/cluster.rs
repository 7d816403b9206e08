//! Commands to whichever server has their slot: grouped by server, one pipeline each, redirected one
//! by one.
//!
//! Reads go to a replica at once where the master does not answer; writes wait for the cluster to
//! name another master, and are unknown meanwhile.

use super::DirectoryError;
use super::connection::{Address, Server, Unreachable};
use super::counts::Counts;
use super::settings::Settings;
use super::slots::SLOTS;
use super::topology::{self, Shard};
use futures_util::future::join_all;
use redis::{Cmd, Pipeline, ServerErrorKind, Value, cmd};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::Notify;
use tracing::{info, warn};

/// Redirections, replicas and functions that are missing, all together.
const ROUNDS_MAX: usize = 5;
/// Commands of one pipeline: a longer one keeps others waiting.
const PIPELINE_MAX: usize = 512;
/// How long one server is asked for the cluster's shape.
const TOPOLOGY_PATIENCE: Duration = Duration::from_secs(1);
/// Between two times that is asked, while something is wrong.
const TOPOLOGY_PAUSE: Duration = Duration::from_millis(200);
/// While nothing is.
const TOPOLOGY_INTERVAL: Duration = Duration::from_secs(5);

/// What sidecars call on the servers.
const FUNCTIONS: &str = include_str!("functions.lua");

/// One command, all of whose keys lie in `slot`.
#[derive(Clone, Debug)]
pub(super) struct Op {
    pub(super) slot: u16,
    pub(super) command: Cmd,
}

/// Who may answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum From {
    Master,
    /// The master, or else a replica, which may be a moment behind.
    Any,
}

#[derive(Debug)]
pub(super) struct Cluster {
    settings: Settings,
    map: Mutex<Map>,
    /// The map may be wrong.
    doubted: Notify,
    pub(super) counts: Arc<Counts>,
}

#[derive(Debug, Default)]
struct Map {
    servers: HashMap<Address, Arc<Server>>,
    shards: Vec<Shard>,
    /// Of each slot, its shard.
    slots: Vec<Option<u16>>,
}

impl Map {
    fn shard(&self, slot: u16) -> Option<&Shard> {
        let shard = self.slots.get(usize::from(slot)).copied().flatten()?;
        self.shards.get(usize::from(shard))
    }
}

/// Where a command goes next.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Target {
    address: Address,
    /// The slot is on its way there, and this one command is let in.
    asking: bool,
}

/// One command on its way.
struct Pending {
    index: usize,
    redirected: Option<Target>,
    /// Servers that did not answer it.
    failed: Vec<Address>,
}

/// What comes of one answer.
enum Next {
    Answer(Value),
    Redirect(Target),
    /// Somebody else may know.
    Elsewhere,
    /// It knows no function of ours.
    NoFunctions,
    Unknown,
}

impl Cluster {
    pub(super) fn new(settings: Settings, counts: Arc<Counts>) -> Result<Self, DirectoryError> {
        let mut map = Map::default();
        for seed in &settings.seeds {
            map.servers.insert(seed.clone(), Arc::new(Server::new(seed.clone(), &settings)?));
        }
        Ok(Self { settings, map: Mutex::new(map), doubted: Notify::new(), counts })
    }

    /// The answers to commands, each `None` where none came by `deadline`.
    pub(super) async fn run(
        &self,
        ops: &[Op],
        from: From,
        deadline: Instant,
    ) -> Vec<Option<Value>> {
        let mut answers = vec![None; ops.len()];
        let new = |index| Pending { index, redirected: None, failed: Vec::new() };
        let mut pending: Vec<_> = (0..ops.len()).map(new).collect();
        for _ in 0..ROUNDS_MAX {
            if pending.is_empty() || Instant::now() >= deadline {
                break;
            }
            let mut groups: HashMap<Target, Vec<Pending>> = HashMap::new();
            for one in pending.drain(..) {
                let target = one.redirected.clone().or_else(|| {
                    let address = self.choose(ops[one.index].slot, from, &one.failed)?;
                    Some(Target { address, asking: false })
                });
                if let Some(target) = target {
                    groups.entry(target).or_default().push(one);
                }
            }
            let asked = groups.into_iter().flat_map(|(target, mut group)| {
                let mut pieces = Vec::new();
                while group.len() > PIPELINE_MAX {
                    pieces.push((target.clone(), group.split_off(group.len() - PIPELINE_MAX)));
                }
                pieces.push((target, group));
                pieces
            });
            let asked = asked.map(|(target, group)| self.ask(ops, target, group, from, deadline));
            for (index, next) in join_all(asked).await.into_iter().flatten() {
                match next {
                    Ok(answer) => answers[index] = Some(answer),
                    Err(again) => pending.extend(again),
                }
            }
        }
        answers
    }

    /// One pipeline to one server.
    async fn ask(
        &self,
        ops: &[Op],
        target: Target,
        group: Vec<Pending>,
        from: From,
        deadline: Instant,
    ) -> Vec<(usize, Result<Value, Option<Pending>>)> {
        let answers = match self.server(&target.address) {
            None => Err(Unreachable),
            Some(server) => {
                let mut pipeline = Pipeline::with_capacity(group.len());
                for one in &group {
                    if target.asking {
                        pipeline.add_command(cmd("ASKING"));
                    }
                    pipeline.add_command(ops[one.index].command.clone());
                }
                server.ask(&pipeline, deadline).await
            }
        };
        let Ok(answers) = answers else {
            self.doubted.notify_one();
            let elsewhere = |mut one: Pending| {
                one.failed.push(target.address.clone());
                one.redirected = None;
                (one.index, Err((from == From::Any).then_some(one)))
            };
            return group.into_iter().map(elsewhere).collect();
        };
        let step = if target.asking { 2 } else { 1 };
        let answers = answers.into_iter().skip(step - 1).step_by(step);
        let mut outcomes = Vec::with_capacity(group.len());
        // Once for all commands of the pipeline.
        let mut loaded = None;
        for (mut one, answer) in group.into_iter().zip(answers) {
            let index = one.index;
            one.redirected = None;
            outcomes.push((
                index,
                match self.judge(answer, &target.address) {
                    Next::Answer(value) => Ok(value),
                    Next::Redirect(target) => {
                        one.redirected = Some(target);
                        Err(Some(one))
                    }
                    Next::Elsewhere if from == From::Any => {
                        one.failed.push(target.address.clone());
                        Err(Some(one))
                    }
                    Next::NoFunctions => {
                        let is_loaded = match loaded {
                            Some(is_loaded) => is_loaded,
                            None => self.load_functions(&target.address, deadline).await,
                        };
                        loaded = Some(is_loaded);
                        Err(is_loaded.then_some(one))
                    }
                    Next::Elsewhere | Next::Unknown => Err(None),
                },
            ));
        }
        outcomes
    }

    fn judge(&self, answer: Value, asked: &str) -> Next {
        let Value::ServerError(error) = answer else { return Next::Answer(answer) };
        let detail = error.details().unwrap_or_default();
        match error.kind() {
            Some(kind @ (ServerErrorKind::Moved | ServerErrorKind::Ask)) => {
                self.doubted.notify_one();
                let asking = kind == ServerErrorKind::Ask;
                let target = topology::redirected(detail, asked);
                target.map_or(Next::Unknown, |address| Next::Redirect(Target { address, asking }))
            }
            Some(
                ServerErrorKind::ClusterDown
                | ServerErrorKind::MasterDown
                | ServerErrorKind::BusyLoading
                | ServerErrorKind::TryAgain
                | ServerErrorKind::ReadOnly,
            ) => {
                self.doubted.notify_one();
                Next::Elsewhere
            }
            Some(ServerErrorKind::ResponseError) if detail.starts_with("Function not found") => {
                Next::NoFunctions
            }
            _ => {
                self.counts.refused(asked, error.code(), detail);
                Next::Unknown
            }
        }
    }

    /// A server that was started empty knows no function; whether it does now.
    async fn load_functions(&self, address: &str, deadline: Instant) -> bool {
        let Some(server) = self.server(address) else { return false };
        let mut pipeline = Pipeline::new();
        pipeline.cmd("FUNCTION").arg("LOAD").arg("REPLACE").arg(FUNCTIONS);
        match server.ask(&pipeline, deadline).await.as_deref() {
            Ok([Value::ServerError(error)]) => {
                self.counts.refused(address, error.code(), error.details().unwrap_or_default());
                false
            }
            Ok(_) => true,
            Err(Unreachable) => false,
        }
    }

    /// A server that may answer for a slot, and has not failed to.
    fn choose(&self, slot: u16, from: From, failed: &[Address]) -> Option<Address> {
        let map = self.map();
        let shard = map.shard(slot)?;
        let replicas = if from == From::Any { &shard.replicas[..] } else { &[] };
        let untried = || {
            let all = shard.master.iter().chain(replicas);
            all.filter(|address| !failed.contains(address))
        };
        let is_up = |address: &&Address| map.servers.get(*address).is_none_or(|one| one.is_up());
        untried().find(is_up).or_else(|| untried().next()).cloned()
    }

    fn server(&self, address: &str) -> Option<Arc<Server>> {
        let mut map = self.map();
        if let Some(server) = map.servers.get(address) {
            return Some(Arc::clone(server));
        }
        let server = Arc::new(Server::new(address.into(), &self.settings).ok()?);
        map.servers.insert(address.into(), Arc::clone(&server));
        Some(server)
    }

    /// Keeps the map right, until it is dropped.
    pub(super) async fn watch(&self) {
        loop {
            let found = self.learn().await;
            self.counts.reached(found);
            // Answers that were wanted before the map was there come in a burst.
            tokio::time::sleep(TOPOLOGY_PAUSE).await;
            if found {
                let _ = tokio::time::timeout(TOPOLOGY_INTERVAL, self.doubted.notified()).await;
            }
        }
    }

    /// Asks server after server for the cluster's shape, until one says it.
    async fn learn(&self) -> bool {
        let known: Vec<_> = self.map().servers.values().cloned().collect();
        let (up, down): (Vec<_>, Vec<_>) = known.into_iter().partition(|server| server.is_up());
        for server in up.into_iter().chain(down) {
            let mut pipeline = Pipeline::new();
            pipeline.cmd("CLUSTER").arg("SHARDS");
            let deadline = Instant::now() + TOPOLOGY_PATIENCE;
            let shards = match server.ask(&pipeline, deadline).await.as_deref() {
                Ok([Value::ServerError(error)]) if error.details().is_some_and(is_alone) => {
                    topology::alone(&server.address)
                }
                Ok([Value::ServerError(error)]) => {
                    let detail = error.details().unwrap_or_default();
                    self.counts.refused(&server.address, error.code(), detail);
                    continue;
                }
                Ok([answer]) => {
                    let tls = self.settings.tls.is_some();
                    match topology::parse(answer, &server.address, tls) {
                        Some(shards) if !shards.is_empty() => shards,
                        _ => continue,
                    }
                }
                _ => continue,
            };
            self.adopt(shards);
            return true;
        }
        false
    }

    fn adopt(&self, shards: Vec<Shard>) {
        let mut slots = vec![None; usize::from(SLOTS)];
        for (shard, number) in shards.iter().zip(0_u16..) {
            for &(first, last) in &shard.slots {
                slots[usize::from(first)..=usize::from(last)].fill(Some(number));
            }
        }
        let mut map = self.map();
        if map.shards == shards {
            return;
        }
        let covered = slots.iter().flatten().count();
        if covered < slots.len() {
            warn!(covered, of = slots.len(), "the directory's cluster lacks slots");
        } else {
            info!(shards = shards.len(), "the directory's cluster has a new shape");
        }
        // Seeds stay: they are where to ask when all others have gone.
        let seeds = &self.settings.seeds;
        let listed = |address: &Address| {
            shards.iter().any(|s| s.master.iter().chain(&s.replicas).any(|one| one == address))
        };
        map.servers.retain(|address, _| seeds.contains(address) || listed(address));
        (map.shards, map.slots) = (shards, slots);
    }

    fn map(&self) -> MutexGuard<'_, Map> {
        // Nothing panics while holding it.
        self.map.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn is_alone(detail: &str) -> bool {
    detail.contains("cluster support disabled")
}
