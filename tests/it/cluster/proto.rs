//! The generated code of `proto/berth/v1/peer.proto` is what protoc makes of it now.

use crate::tree::root;

const COMMITTED: &str = "src/peers/proto/berth.v1.rs";

#[test]
fn the_generated_proto_code_is_current() {
    let made = tempfile::tempdir().unwrap();
    tonic_prost_build::configure()
        .bytes(".")
        .out_dir(made.path())
        .emit_rerun_if_changed(false)
        .compile_protos(&[root().join("proto/berth/v1/peer.proto")], &[root().join("proto")])
        .expect("protoc: apt-get install protobuf-compiler, or see what it says of peer.proto");
    let made = std::fs::read_to_string(made.path().join("berth.v1.rs")).unwrap();
    let made = format!("//! Generated from proto/berth/v1/peer.proto; see mod.rs.\n{made}");
    if std::env::var_os("UPDATE_PROTO").is_some() {
        std::fs::write(root().join(COMMITTED), &made).unwrap();
    }
    let committed = std::fs::read_to_string(root().join(COMMITTED)).unwrap_or_default();
    assert!(
        committed == made,
        "{COMMITTED} is not what protoc makes of peer.proto; UPDATE_PROTO=1 cargo test --test it proto rewrites it"
    );
}
