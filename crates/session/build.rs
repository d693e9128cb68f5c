//! Generates messages, client and server stubs from `proto/` without needing protoc.

use std::path::PathBuf;

const FILES: &[&str] = &[
    "apicaps.proto",
    "content.proto",
    "control.proto",
    "errdefs.proto",
    "exporter.proto",
    "filesync.proto",
    "fsutil.proto",
    "gateway.proto",
    "health.proto",
    "kiln.proto",
    "policy.proto",
    "policysession.proto",
    "secrets.proto",
    "ssh.proto",
    "status.proto",
    "trace.proto",
    "upload.proto",
    "worker.proto",
];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto");
    println!("cargo:rerun-if-changed=../llb/proto");
    let includes = ["proto", "../llb/proto"];
    let mut config = prost_build::Config::new();
    config.btree_map(["."]);
    config.bytes([
        ".fsutil.types.Packet.data",
        ".moby.filesync.v1.BytesMessage",
        ".moby.sshforward.v1.BytesMessage",
        ".moby.upload.v1.BytesMessage",
        ".moby.buildkit.v1.BytesMessage",
        ".moby.buildkit.v1.VertexLog.msg",
        ".kiln.v1.RunInput",
        ".kiln.v1.RunOutput",
        ".containerd.services.content.v1.ReadContentResponse.data",
        ".containerd.services.content.v1.WriteContentRequest.data",
    ]);
    config.enable_type_names();
    config.extern_path(".pb", "::kiln_llb::pb");
    tonic_prost_build::configure().compile_fds_with_config(protox::compile(FILES, includes)?, config)?;

    // FileSend apart: its messages stay encoded.
    let out = PathBuf::from(std::env::var("OUT_DIR")?).join("filesend");
    std::fs::create_dir_all(&out)?;
    tonic_prost_build::configure()
        .out_dir(out)
        .codec_path("crate::codec::EncodedCodec")
        .extern_path(".moby.filesync.v1.EncodedMessage", "::bytes::Bytes")
        .compile_fds(protox::compile(["filesend.proto"], includes)?)?;
    Ok(())
}
