//! What those who make the directory's server measure it with, doing what a directory does: as many
//! buckets, of as many entries, each in turn at random.
//!
//! It puts numbers of 12 digits where it is told to, all of one range. So its buckets are numbered, of
//! one slot a master, and each has one field that all reads ask for, in the middle of the others. What it
//! writes has fields of 12 bytes, where a directory's have 6.

use refrain::cluster::Cluster;
use std::io::{BufWriter, Write};
use std::process::{Child, Command, Stdio};

/// The user that sidecars are, whose every command is checked against what it may.
const USER: &str = "refrain";
const FIELD: &[u8; 6] = b"middle";
const OWNER: &str = "ownr";
const NUMBER: &str = "__rand_int__";

/// `redis-benchmark`, one for each master of a cluster.
#[derive(Debug)]
pub struct RedisBenchmark<'a> {
    cluster: &'a Cluster,
    /// Of each master, the tag of one of its slots.
    tags: Vec<String>,
    /// Of each master.
    buckets: usize,
}

/// Connections to a server, and commands that one of them sends before it waits for the answers.
#[derive(Clone, Copy, Debug)]
pub struct Pipelines {
    pub connections: usize,
    pub commands: usize,
}

impl<'a> RedisBenchmark<'a> {
    /// For a directory of so many buckets.
    pub fn new(cluster: &'a Cluster, buckets: usize) -> Self {
        let is_own = |server: usize, tag: &String| {
            let answer = cluster.command(server, ["GET", tag]).expect("it answers");
            !answer.starts_with("MOVED")
        };
        let tag = |server| {
            let mut tags = (0..1000).map(|number| format!("{{{number:03}}}"));
            tags.find(|tag| is_own(server, tag))
                .expect("a third of all slots has some of 1,000 tags")
        };
        let tags = (0..cluster.len()).map(tag).collect();
        Self { cluster, tags, buckets: buckets.div_ceil(cluster.len()) }
    }

    /// Fills buckets that `get` reads, an entry of each after the other, as a directory grows.
    pub fn load(&self, entries: usize) {
        let bucket_entries = entries.div_ceil(self.buckets * self.cluster.len());
        let load = |(server, tag): (usize, &String)| {
            let mut random = fastrand::Rng::with_seed(1);
            let mut client = self.spawn("redis-cli", server, "admin", &["--pipe".into()]);
            let mut input = BufWriter::new(client.stdin.take().expect("it is piped"));
            for entry in 0..bucket_entries {
                for bucket in 0..self.buckets {
                    let other: [u8; 6] = std::array::from_fn(|_| random.u8(..));
                    let field = if entry == bucket_entries / 2 { FIELD } else { &other };
                    let key = format!("{tag}{bucket:012}");
                    let words = [b"HSET", key.as_bytes(), field, OWNER.as_bytes()];
                    write!(input, "*{}\r\n", words.len()).expect("it reads");
                    for word in words {
                        write!(input, "${}\r\n", word.len()).expect("it reads");
                        input.write_all(word).expect("it reads");
                        input.write_all(b"\r\n").expect("it reads");
                    }
                }
            }
            drop(input);
            client
        };
        self.tags.iter().enumerate().map(load).for_each(done);
    }

    /// HGET of one field of a bucket that was loaded; how many there were.
    pub fn get(&self, operations: usize, pipelines: Pipelines) -> usize {
        let field = str::from_utf8(FIELD).expect("it is text");
        self.run(operations, pipelines, |tag| {
            vec!["HGET".into(), format!("{tag}{NUMBER}"), field.into()]
        })
    }

    /// HSETNX of an entry, nearly always a new one; how many there were.
    pub fn put(&self, operations: usize, pipelines: Pipelines) -> usize {
        self.run(operations, pipelines, |tag| {
            ["HSETNX", &format!("{tag}:{NUMBER}"), NUMBER, OWNER].map(str::to_owned).into()
        })
    }

    fn run(
        &self,
        operations: usize,
        pipelines: Pipelines,
        words: impl Fn(&str) -> Vec<String>,
    ) -> usize {
        let each = operations.div_ceil(self.tags.len());
        let Pipelines { connections, commands } = pipelines;
        let begin = |(server, tag): (usize, &String)| {
            let numbers =
                [("-c", connections), ("-P", commands), ("-r", self.buckets), ("-n", each)];
            let mut all = vec!["-q".to_owned()];
            all.extend(
                numbers.into_iter().flat_map(|(key, number)| [key.into(), number.to_string()]),
            );
            all.extend(words(tag));
            self.spawn("redis-benchmark", server, USER, &all)
        };
        let running: Vec<_> = self.tags.iter().enumerate().map(begin).collect();
        running.into_iter().for_each(done);
        each * self.tags.len()
    }

    fn spawn(&self, program: &str, server: usize, user: &str, words: &[String]) -> Child {
        let port = self.cluster.port(server).to_string();
        Command::new(program)
            .args(["-h", "127.0.0.1", "-p", &port, "--user", user, "-a", self.cluster.password()])
            .args(words)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("it is there")
    }
}

fn done(client: Child) {
    let output = client.wait_with_output().expect("it ends");
    assert!(output.status.success(), "{output:?}");
}
