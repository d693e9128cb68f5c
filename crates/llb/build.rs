//! Generates the wire types of `proto/ops.proto` without needing protoc.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto/ops.proto");
    let files = protox::compile(["proto/ops.proto"], ["proto"])?;
    let mut config = prost_build::Config::new();
    // Go sorts map keys when it encodes an op for hashing; so must we.
    config.btree_map(["."]);
    config.bytes([".pb.Definition.def", ".pb.SourceInfo.data", ".pb.FileActionMkFile.data"]);
    config.enable_type_names();
    config.compile_fds(files)?;
    Ok(())
}
