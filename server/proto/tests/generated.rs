//! Proves that the committed code is what the `.proto` file says, by generating it once more.
//!
//! After a change of the `.proto` file: `UPDATE_GENERATED=1 cargo test --release -p refrain-proto`.

use prost::Message;
use std::fs;
use std::path::Path;

const PROTO: &str = "refrain/v1/refrain.proto";

/// Fields that carry data rather than names: received without a copy.
const DATA: &[&str] = &[
    ".refrain.v1.LookupRequest.tokens",
    ".refrain.v1.ReadChunk.data",
    ".refrain.v1.WriteChunk.data",
];

#[test]
fn committed_code_is_what_the_proto_file_generates() {
    let home = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut descriptors = protox::compile([PROTO], [home.join("proto")]).unwrap();
    let target = tempfile::tempdir().unwrap();
    let mut builder = tonic_prost_build::configure().out_dir(target.path());
    for field in DATA {
        builder = builder.bytes(field);
    }
    builder.compile_fds(descriptors.clone()).unwrap();
    for file in &mut descriptors.file {
        file.source_code_info = None;
    }

    let code = fs::read(target.path().join("refrain.v1.rs")).unwrap();
    check(&home.join("src/generated/refrain.v1.rs"), &code);
    check(&home.join("src/generated/refrain.v1.bin"), &descriptors.encode_to_vec());
}

fn check(committed: &Path, generated: &[u8]) {
    if std::env::var_os("UPDATE_GENERATED").is_some() {
        fs::write(committed, generated).expect("the source tree is writable");
    }
    let same = fs::read(committed).is_ok_and(|bytes| bytes == generated);
    assert!(
        same,
        "{} is not what the proto file says: see the top of this test",
        committed.display()
    );
}
