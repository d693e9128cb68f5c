//! LLBBridge on the control socket: how clients drive a build themselves, call by call.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::Arc;

use futures::Stream;
use kiln_engine::container::ContainerSpec;
use kiln_engine::frontend::gateway::Frontend;
use kiln_engine::source::lookup::{ImageQuery, image_config};
use kiln_engine::source::meta;
use kiln_engine::{Bridge, CacheSpec, Engine, FrontendRequest, FrontendResult, Ref, ResultRefs, inspect};
use kiln_llb::caps;
use kiln_llb::op::{HostIp, NetMode, SourceOp};
use kiln_session::errdetail;
use kiln_session::proto::control::apicaps::ApiCap;
use kiln_session::proto::fs::Stat;
use kiln_session::proto::gateway as pb;
use kiln_session::proto::gateway::llb_bridge_server::LlbBridge;
use kiln_session::stat::{go, to_go_mode};
use kiln_snapshot::{Entry, Kind};
use kiln_store::ImmutableRef;
use tonic::{Request, Response, Status, Streaming};

use crate::{attestations, convert, processes, workers};

/// Names the build that a call belongs to.
const BUILD: &str = "buildkit-controlapi-buildid";

/// Messages of processes that may wait for a slow client.
const MESSAGES: usize = 16;

/// The bridge service.
pub struct BridgeService {
    pub builds: Builds,
    pub about: workers::About,
}

/// Which builds a service answers for.
pub enum Builds {
    /// Those that clients drive; each call names one.
    OfClients(Engine),
    /// That of one frontend in an image.
    OfFrontend(Arc<Frontend>),
}

impl BridgeService {
    fn build<T>(request: &Request<T>) -> Result<String, Status> {
        let id = request.metadata().get(BUILD).and_then(|v| v.to_str().ok());
        id.map(str::to_owned).ok_or_else(|| Status::invalid_argument("no buildid found in context"))
    }

    async fn bridge<T>(&self, request: &Request<T>) -> Result<Bridge, Status> {
        match &self.builds {
            Builds::OfFrontend(frontend) => Ok(frontend.bridge.clone()),
            Builds::OfClients(engine) => {
                let build = Self::build(request)?;
                engine.gateway(&build).await.map_err(|e| Status::not_found(e.to_string()))
            }
        }
    }

    async fn evaluated(bridge: &Bridge, id: &str) -> Result<ImmutableRef, Status> {
        if id.is_empty() {
            return Ok(bridge.parts().store.scratch());
        }
        let reference = find(bridge, id)?;
        bridge.files(&reference).await.map_err(|e| convert::status(&e))
    }
}

fn find(bridge: &Bridge, id: &str) -> Result<Ref, Status> {
    bridge.reference(id).ok_or_else(|| Status::not_found(format!("no such ref: {id}")))
}

pub fn wire_ref(reference: Option<&Ref>) -> pb::Ref {
    match reference {
        Some(reference) => pb::Ref { id: reference.id().to_owned(), def: Some(reference.definition().to_pb()) },
        None => pb::Ref::default(),
    }
}

fn wire_result(result: &FrontendResult) -> pb::Result {
    let refs = match &result.refs {
        ResultRefs::Single(one) => pb::result::Result::Ref(wire_ref(one.as_ref())),
        ResultRefs::Map(map) => {
            let refs = map.iter().map(|(id, one)| (id.clone(), wire_ref(one.as_ref()))).collect();
            pb::result::Result::Refs(pb::RefMap { refs })
        }
    };
    let metadata = result.metadata.iter().map(|(k, v)| (k.clone(), v.clone())).collect();
    let attestations = result.attestations.iter().map(|(id, list)| {
        (id.clone(), pb::Attestations { attestation: list.iter().map(attestations::to_wire).collect() })
    });
    pb::Result { result: Some(refs), metadata, attestations: attestations.collect() }
}

fn own_result(bridge: &Bridge, result: pb::Result) -> Result<FrontendResult, Status> {
    let lookup = |id: &str| if id.is_empty() { Ok(None) } else { find(bridge, id).map(Some) };
    let refs = match result.result {
        None => ResultRefs::Single(None),
        Some(pb::result::Result::Ref(one)) => ResultRefs::Single(lookup(&one.id)?),
        Some(pb::result::Result::RefDeprecated(id)) => ResultRefs::Single(lookup(&id)?),
        Some(pb::result::Result::Refs(map)) => {
            let refs = map.refs.into_iter().map(|(id, one)| Ok((id, lookup(&one.id)?)));
            ResultRefs::Map(refs.collect::<Result<_, Status>>()?)
        }
        Some(pb::result::Result::RefsDeprecated(map)) => {
            let refs = map.refs.into_iter().map(|(id, one)| Ok((id, lookup(&one)?)));
            ResultRefs::Map(refs.collect::<Result<_, Status>>()?)
        }
    };
    let metadata = result.metadata.into_iter().map(|(k, v)| (k, v.to_vec())).collect();
    let mut attestations = BTreeMap::new();
    for (id, list) in result.attestations {
        let list = list.attestation.into_iter().map(|a| {
            let reference = a.r#ref.as_ref().map(|r| lookup(&r.id)).transpose()?.flatten();
            attestations::from_wire(a, reference)
        });
        attestations.insert(id, list.collect::<Result<Vec<_>, Status>>()?);
    }
    Ok(FrontendResult { refs, metadata, attestations })
}

fn wire_stat(entry: &Entry) -> Stat {
    let kind = match entry.kind {
        Kind::Dir => go::DIR,
        Kind::Symlink => go::SYMLINK,
        Kind::Fifo => go::NAMED_PIPE,
        Kind::CharDevice => go::DEVICE | go::CHAR_DEVICE,
        Kind::BlockDevice => go::DEVICE,
        Kind::File | Kind::Whiteout => 0,
    };
    let nanos = entry.mtime.0.saturating_mul(1_000_000_000).saturating_add(i64::from(entry.mtime.1));
    Stat {
        path: entry.name().to_vec(),
        mode: kind | (to_go_mode(entry.mode) & !go::TYPE),
        uid: entry.uid,
        gid: entry.gid,
        size: i64::try_from(entry.size).unwrap_or(i64::MAX),
        mod_time: nanos,
        linkname: entry.target.clone(),
        devmajor: i64::from(entry.rdev.0),
        devminor: i64::from(entry.rdev.1),
        ..Stat::default()
    }
}

fn api_caps(names: impl IntoIterator<Item = &'static str>) -> Vec<ApiCap> {
    names.into_iter().map(|id| ApiCap { id: id.to_owned(), enabled: true, ..ApiCap::default() }).collect()
}

/// Answers for sources that are no images.
async fn other_source_meta(
    bridge: &Bridge,
    scheme: &str,
    source: kiln_llb::pb::SourceOp,
    git_objects: bool,
) -> Result<Response<pb::ResolveSourceMetaResponse>, Status> {
    let op = SourceOp { identifier: source.identifier.clone(), attrs: source.attrs.clone() };
    let mut response = pb::ResolveSourceMetaResponse { source: Some(source), ..Default::default() };
    match scheme {
        "git" => {
            let found = meta::git(bridge, &op).await.map_err(|e| convert::status(&e))?;
            let mut git = pb::ResolveSourceGitResponse {
                checksum: found.object,
                r#ref: found.reference,
                commit_checksum: found.commit.unwrap_or_default(),
                ..Default::default()
            };
            if git_objects {
                let objects = meta::git_objects(bridge, &op).await.map_err(|e| convert::status(&e))?;
                git.commit_object = objects.commit;
                git.tag_object = objects.tag.unwrap_or_default();
            }
            response.git = Some(git);
        }
        "http" | "https" => {
            let found = meta::http(bridge, &op).await.map_err(|e| convert::status(&e))?;
            response.http = Some(pb::ResolveSourceHttpResponse {
                checksum: found.digest.to_string(),
                filename: found.filename,
                last_modified: found.last_modified.map(|seconds| prost_types::Timestamp { seconds, nanos: 0 }),
                ..Default::default()
            });
        }
        _ => {}
    }
    Ok(Response::new(response))
}

fn policies(
    messages: Vec<kiln_session::proto::policy::Policy>,
) -> Result<Vec<kiln_engine::policy::SourcePolicy>, Status> {
    messages.into_iter().map(convert::source_policy).collect()
}

fn range(range: pb::FileRange) -> inspect::Range {
    inspect::Range {
        offset: u64::try_from(range.offset).unwrap_or(0),
        length: u64::try_from(range.length).unwrap_or(0),
    }
}

fn mount_index(index: i32) -> Result<usize, Status> {
    usize::try_from(index).map_err(|_| Status::invalid_argument("negative mount index"))
}

fn read_dir(layers: &ImmutableRef, request: &pb::ReadDirRequest) -> Result<pb::ReadDirResponse, Status> {
    let entries = inspect::read_dir(layers, &request.dir_path).map_err(|e| convert::status(&e))?;
    Ok(listing(&entries, request))
}

fn listing(entries: &[Entry], request: &pb::ReadDirRequest) -> pb::ReadDirResponse {
    let pattern = request.include_pattern.as_bytes();
    let matches =
        |entry: &&Entry| pattern.is_empty() || kiln_stdx::pattern::matches(pattern, entry.name()).unwrap_or(false);
    pb::ReadDirResponse { entries: entries.iter().filter(matches).map(wire_stat).collect() }
}

#[tonic::async_trait]
impl LlbBridge for BridgeService {
    async fn resolve_image_config(
        &self,
        request: Request<pb::ResolveImageConfigRequest>,
    ) -> Result<Response<pb::ResolveImageConfigResponse>, Status> {
        let bridge = self.bridge(&request).await?;
        let request = request.into_inner();
        let layout = (request.resolver_type == 1).then_some((request.session_id, request.store_id));
        bridge.build().policies.add(policies(request.source_policies)?);
        let platform = convert::platform(request.platform);
        let scheme = if layout.is_some() { "oci-layout" } else { "docker-image" };
        let identifier = format!("{scheme}://{}", request.r#ref);
        let source = SourceOp { identifier, attrs: BTreeMap::new() };
        let source = bridge.policed_source(source, platform.clone()).await.map_err(|e| convert::status(&e))?;
        let name = source.split().map_or(request.r#ref.as_str(), |(_, name)| name);
        let query =
            ImageQuery { name, platform, layout, pull: request.resolve_mode == "pull", log_name: &request.log_name };
        let resolved = image_config(&bridge, query).await.map_err(|e| convert::status(&e))?;
        Ok(Response::new(pb::ResolveImageConfigResponse {
            digest: resolved.root.to_string(),
            config: resolved.config_json,
            r#ref: name.to_owned(),
        }))
    }

    async fn resolve_source_meta(
        &self,
        request: Request<pb::ResolveSourceMetaRequest>,
    ) -> Result<Response<pb::ResolveSourceMetaResponse>, Status> {
        let bridge = self.bridge(&request).await?;
        let request = request.into_inner();
        let source = request.source.ok_or_else(|| Status::invalid_argument("no source"))?;
        let platform = convert::platform(request.platform);
        bridge.build().policies.add(policies(request.source_policies)?);
        let source = SourceOp { identifier: source.identifier, attrs: source.attrs };
        let source = bridge.policed_source(source, platform.clone()).await.map_err(|e| convert::status(&e))?;
        let source = kiln_llb::pb::SourceOp { identifier: source.identifier, attrs: source.attrs };
        let attr = |key: &str| source.attrs.get(key).cloned().unwrap_or_default();
        let (name, layout) = match source.identifier.split_once("://") {
            Some(("docker-image", name)) => (name, None),
            Some(("oci-layout", name)) => (name, Some((attr("oci.session"), attr("oci.store")))),
            scheme => {
                let scheme = scheme.map_or_else(String::new, |(scheme, _)| scheme.to_owned());
                let objects = request.git.is_some_and(|git| git.return_object);
                return other_source_meta(&bridge, &scheme, source.clone(), objects).await;
            }
        };
        let pull = request.resolve_mode == "pull" || attr("image.resolvemode") == "pull";
        let query = ImageQuery { name, platform, layout, pull, log_name: &request.log_name };
        let again = query.clone();
        let resolved = image_config(&bridge, query).await.map_err(|e| convert::status(&e))?;
        let asked = request.image.unwrap_or_default();
        let image = pb::ResolveSourceImageResponse {
            digest: resolved.root.to_string(),
            config: if asked.no_config { Default::default() } else { resolved.config_json },
            attestation_chain: attestations::chain(&bridge, again, &asked).await?,
        };
        Ok(Response::new(pb::ResolveSourceMetaResponse {
            source: Some(source),
            image: Some(image),
            ..Default::default()
        }))
    }

    async fn solve(&self, request: Request<pb::SolveRequest>) -> Result<Response<pb::SolveResponse>, Status> {
        let bridge = self.bridge(&request).await?;
        let request = request.into_inner();
        let request = FrontendRequest {
            definition: request.definition.map(convert::definition).filter(|d| !d.is_empty()),
            frontend: request.frontend,
            attrs: request.frontend_opt,
            inputs: convert::definitions(request.frontend_inputs),
            cache_imports: request
                .cache_imports
                .into_iter()
                .map(|e| CacheSpec { kind: e.r#type, attrs: e.attrs })
                .collect(),
            policies: request.source_policies.into_iter().map(convert::source_policy).collect::<Result<_, Status>>()?,
            evaluate: request.evaluate,
        };
        let result = bridge.solve(request).await.map_err(|e| convert::status(&e))?;
        Ok(Response::new(pb::SolveResponse { r#ref: String::new(), result: Some(wire_result(&result)) }))
    }

    async fn read_file(&self, request: Request<pb::ReadFileRequest>) -> Result<Response<pb::ReadFileResponse>, Status> {
        let bridge = self.bridge(&request).await?;
        let request = request.into_inner();
        let reference = Self::evaluated(&bridge, &request.r#ref).await?;
        let range = request.range.map(range);
        let data = inspect::read_file(bridge.parts(), &reference, &request.file_path, range)
            .await
            .map_err(|e| convert::status(&e))?;
        Ok(Response::new(pb::ReadFileResponse { data }))
    }

    async fn read_dir(&self, request: Request<pb::ReadDirRequest>) -> Result<Response<pb::ReadDirResponse>, Status> {
        let bridge = self.bridge(&request).await?;
        let request = request.into_inner();
        let reference = Self::evaluated(&bridge, &request.r#ref).await?;
        Ok(Response::new(read_dir(&reference, &request)?))
    }

    async fn stat_file(&self, request: Request<pb::StatFileRequest>) -> Result<Response<pb::StatFileResponse>, Status> {
        let bridge = self.bridge(&request).await?;
        let request = request.into_inner();
        let reference = Self::evaluated(&bridge, &request.r#ref).await?;
        let entry = inspect::stat(&reference, &request.path).map_err(|e| convert::status(&e))?;
        Ok(Response::new(pb::StatFileResponse { stat: Some(wire_stat(&entry)) }))
    }

    async fn evaluate(&self, request: Request<pb::EvaluateRequest>) -> Result<Response<pb::EvaluateResponse>, Status> {
        let bridge = self.bridge(&request).await?;
        Self::evaluated(&bridge, &request.into_inner().r#ref).await?;
        Ok(Response::new(pb::EvaluateResponse {}))
    }

    async fn ping(&self, request: Request<pb::PingRequest>) -> Result<Response<pb::PongResponse>, Status> {
        // Clients ping before anything else; the wait for their build is part of the answer.
        let bridge = self.bridge(&request).await?;
        Ok(Response::new(pb::PongResponse {
            frontend_api_caps: api_caps(caps::GATEWAY.iter().map(|(id, _)| *id)),
            llb_caps: api_caps(caps::LLB.iter().copied()),
            workers: vec![workers::worker(bridge.parts(), &self.about)],
        }))
    }

    async fn r#return(&self, request: Request<pb::ReturnRequest>) -> Result<Response<pb::ReturnResponse>, Status> {
        let bridge = self.bridge(&request).await?;
        let build = match &self.builds {
            Builds::OfClients(_) => Self::build(&request)?,
            Builds::OfFrontend(_) => String::new(),
        };
        let request = request.into_inner();
        let outcome = match request.error {
            Some(error) if error.code != 0 => Err(convert::error(&errdetail::from_rpc(&error))),
            _ => Ok(own_result(&bridge, request.result.unwrap_or_default())?),
        };
        let finished = match &self.builds {
            Builds::OfClients(engine) => engine.finish(&build, outcome).await,
            Builds::OfFrontend(frontend) => frontend.finish(outcome),
        };
        finished.map_err(|e| convert::status(&e))?;
        Ok(Response::new(pb::ReturnResponse {}))
    }

    async fn inputs(&self, request: Request<pb::InputsRequest>) -> Result<Response<pb::InputsResponse>, Status> {
        let inputs = match &self.builds {
            Builds::OfFrontend(frontend) => frontend.inputs.clone(),
            Builds::OfClients(engine) => {
                let build = Self::build(&request)?;
                engine.frontend_inputs(&build).await.map_err(|e| Status::not_found(e.to_string()))?
            }
        };
        let definitions = inputs.into_iter().map(|(name, definition)| (name, definition.to_pb())).collect();
        Ok(Response::new(pb::InputsResponse { definitions }))
    }

    async fn new_container(
        &self,
        request: Request<pb::NewContainerRequest>,
    ) -> Result<Response<pb::NewContainerResponse>, Status> {
        let bridge = self.bridge(&request).await?;
        let request = request.into_inner();
        let mounts = request.mounts.into_iter().map(kiln_llb::gateway_mount).collect::<Result<_, _>>();
        let network = NetMode::try_from(request.network);
        let network = network.map_err(|_| Status::invalid_argument("unknown network mode"))?;
        let host = |h: kiln_llb::pb::HostIp| HostIp { host: h.host, ip: h.ip };
        let spec = ContainerSpec {
            mounts: mounts.map_err(Status::invalid_argument)?,
            network,
            extra_hosts: request.extra_hosts.into_iter().map(host).collect(),
            hostname: request.hostname,
            path: request.platform.is_some_and(|p| p.os == "windows").then_some(kiln_engine::container::WINDOWS_PATH),
        };
        bridge.new_container(&request.container_id, spec).await.map_err(|e| convert::status(&e))?;
        Ok(Response::new(pb::NewContainerResponse {}))
    }

    async fn release_container(
        &self,
        request: Request<pb::ReleaseContainerRequest>,
    ) -> Result<Response<pb::ReleaseContainerResponse>, Status> {
        let bridge = self.bridge(&request).await?;
        let released = bridge.containers().release(&request.into_inner().container_id).await;
        released.map_err(|e| convert::status(&e))?;
        Ok(Response::new(pb::ReleaseContainerResponse {}))
    }

    type ExecProcessStream = Pin<Box<dyn Stream<Item = Result<pb::ExecMessage, Status>> + Send>>;

    async fn exec_process(
        &self,
        request: Request<Streaming<pb::ExecMessage>>,
    ) -> Result<Response<Self::ExecProcessStream>, Status> {
        let bridge = self.bridge(&request).await?;
        let (outgoing, messages) = tokio::sync::mpsc::channel(MESSAGES);
        tokio::spawn(processes::serve(bridge, request.into_inner(), outgoing));
        Ok(Response::new(Box::pin(tokio_stream::wrappers::ReceiverStream::new(messages))))
    }

    async fn read_file_container(
        &self,
        request: Request<pb::ReadFileRequest>,
    ) -> Result<Response<pb::ReadFileResponse>, Status> {
        let bridge = self.bridge(&request).await?;
        let request = request.into_inner();
        let container = bridge.containers().get(&request.r#ref).map_err(|e| convert::status(&e))?;
        let mount = mount_index(request.mount_index)?;
        let data = container.read_file(mount, &request.file_path, request.range.map(range)).await;
        Ok(Response::new(pb::ReadFileResponse { data: data.map_err(|e| convert::status(&e))? }))
    }

    async fn read_dir_container(
        &self,
        request: Request<pb::ReadDirRequest>,
    ) -> Result<Response<pb::ReadDirResponse>, Status> {
        let bridge = self.bridge(&request).await?;
        let request = request.into_inner();
        let container = bridge.containers().get(&request.r#ref).map_err(|e| convert::status(&e))?;
        let entries = container.read_dir(mount_index(request.mount_index)?, &request.dir_path).await;
        Ok(Response::new(listing(&entries.map_err(|e| convert::status(&e))?, &request)))
    }

    async fn stat_file_container(
        &self,
        request: Request<pb::StatFileRequest>,
    ) -> Result<Response<pb::StatFileResponse>, Status> {
        let bridge = self.bridge(&request).await?;
        let request = request.into_inner();
        let container = bridge.containers().get(&request.r#ref).map_err(|e| convert::status(&e))?;
        let entry = container.stat(mount_index(request.mount_index)?, &request.path).await;
        let entry = entry.map_err(|e| convert::status(&e))?;
        Ok(Response::new(pb::StatFileResponse { stat: Some(wire_stat(&entry)) }))
    }

    async fn warn(&self, request: Request<pb::WarnRequest>) -> Result<Response<pb::WarnResponse>, Status> {
        let bridge = self.bridge(&request).await?;
        let w = request.into_inner();
        let vertex = w.digest.parse().map_err(|_| Status::invalid_argument("bad vertex digest"))?;
        bridge.build().log.push(kiln_engine::events::Event::Warning(kiln_engine::events::WarningEvent {
            vertex,
            level: w.level,
            short: w.short.to_vec(),
            detail: w.detail.iter().map(|d| d.to_vec()).collect(),
            url: w.url,
            source: w.info,
            ranges: w.ranges,
        }));
        Ok(Response::new(pb::WarnResponse {}))
    }
}
