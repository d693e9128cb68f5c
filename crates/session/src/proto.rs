//! Messages and service stubs, generated from `proto/` (features 3), in modules that follow the packages.
#![allow(missing_docs, clippy::all, clippy::pedantic, unused_qualifications)]

macro_rules! include_package {
    ($file:literal) => {
        include!(concat!(env!("OUT_DIR"), "/", $file, ".rs"));
    };
}

pub mod containerd {
    pub mod services {
        pub mod content {
            pub mod v1 {
                include_package!("containerd.services.content.v1");
            }
        }
    }
}

pub mod errdefs {
    include_package!("errdefs");
}

pub mod fsutil {
    pub mod types {
        include_package!("fsutil.types");
    }
}

pub mod google {
    pub mod rpc {
        include_package!("google.rpc");
    }
}

pub mod grpc {
    pub mod health {
        pub mod v1 {
            include_package!("grpc.health.v1");
        }
    }
}

pub mod kiln {
    pub mod v1 {
        include_package!("kiln.v1");
    }
}

pub mod moby {
    pub mod buildkit {
        pub mod secrets {
            pub mod v1 {
                include_package!("moby.buildkit.secrets.v1");
            }
        }
        pub mod v1 {
            include_package!("moby.buildkit.v1");

            pub mod apicaps {
                include_package!("moby.buildkit.v1.apicaps");
            }
            pub mod frontend {
                include_package!("moby.buildkit.v1.frontend");
            }
            pub mod sourcepolicy {
                include_package!("moby.buildkit.v1.sourcepolicy");

                pub mod policysession {
                    include_package!("moby.buildkit.v1.sourcepolicy.policysession");
                }
            }
            pub mod types {
                include_package!("moby.buildkit.v1.types");
            }
        }
    }
    pub mod exporter {
        pub mod v1 {
            include_package!("moby.exporter.v1");
        }
    }
    pub mod filesync {
        pub mod v1 {
            include_package!("moby.filesync.v1");
            include!(concat!(env!("OUT_DIR"), "/filesend/moby.filesync.v1.rs"));
        }
    }
    pub mod sshforward {
        pub mod v1 {
            include_package!("moby.sshforward.v1");
        }
    }
    pub mod upload {
        pub mod v1 {
            include_package!("moby.upload.v1");
        }
    }
}

/// Short names for what is used most.
pub use containerd::services::content::v1 as content;
pub use fsutil::types as fs;
pub use grpc::health::v1 as health;
pub use kiln::v1 as kiln_v1;
pub use moby::buildkit::secrets::v1 as secrets;
pub use moby::buildkit::v1 as control;
pub use moby::buildkit::v1::frontend as gateway;
pub use moby::buildkit::v1::sourcepolicy as policy;
pub use moby::buildkit::v1::sourcepolicy::policysession;
pub use moby::exporter::v1 as exporter;
pub use moby::filesync::v1 as filesync;
pub use moby::sshforward::v1 as ssh;
pub use moby::upload::v1 as upload;

pub mod opentelemetry {
    pub mod trace {
        pub mod v1 {
            include_package!("opentelemetry.proto.collector.trace.v1");
        }
    }
}
