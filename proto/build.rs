//! Compiles `v1/*.proto` without protoc: protox makes the descriptors, tonic-prost-build the code.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let files = ["v1/recording.proto", "v1/node.proto", "v1/ingest.proto", "v1/query.proto"];
    for file in files {
        println!("cargo::rerun-if-changed={file}");
    }
    let descriptors = protox::compile(files, ["."])?;
    tonic_prost_build::configure().bytes(".weir.v1").btree_map(".weir.v1").compile_fds(descriptors)?;
    Ok(())
}
