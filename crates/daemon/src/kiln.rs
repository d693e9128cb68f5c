//! Calls that only kiln's own clients make.

use std::pin::Pin;

use futures::Stream;
use kiln_engine::Engine;
use kiln_session::proto::kiln_v1::kiln_server::Kiln;
use kiln_session::proto::kiln_v1::{
    CacheFileData, CacheFiles, CacheMountsRequest, CacheMountsResponse, CachePath, FollowRequest, FollowResponse,
    Problem, ReasonsRequest, ReasonsResponse, RemoveCacheMountsRequest, RemoveCacheMountsResponse, RunInput, RunOutput,
    VerifyRequest, VerifyResponse,
};
use kiln_store::Store;
use tokio::sync::mpsc::Sender;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use crate::listen::Peer;
use crate::{cache_mounts, reasons, runs};

/// Messages of a running process that may wait for a slow client.
const MESSAGES: usize = 16;

/// kiln's own service.
pub struct KilnService {
    pub engine: Engine,
}

/// What is told of a path in a cache mount, one message after the other.
type Told<T> = ReceiverStream<Result<T, Status>>;

impl KilnService {
    /// Has `tell` send what it finds at a path in a cache mount, on a thread of its own.
    fn cache_files<T: Send + 'static>(
        &self,
        request: Request<CachePath>,
        tell: fn(&Store, &CachePath, &Sender<Result<T, Status>>),
    ) -> Response<Told<T>> {
        let (store, path) = (self.engine.parts().store.clone(), request.into_inner());
        let (outgoing, messages) = tokio::sync::mpsc::channel(MESSAGES);
        tokio::task::spawn_blocking(move || tell(&store, &path, &outgoing));
        Response::new(ReceiverStream::new(messages))
    }
}

#[tonic::async_trait]
impl Kiln for KilnService {
    async fn verify(&self, request: Request<VerifyRequest>) -> Result<Response<VerifyResponse>, Status> {
        let repair = !request.into_inner().check_only;
        let store = self.engine.parts().store.clone();
        let report = tokio::task::spawn_blocking(move || store.verify(repair))
            .await
            .map_err(|e| Status::internal(e.to_string()))?
            .map_err(|e| Status::unknown(e.to_string()))?;
        let problems = report
            .problems
            .iter()
            .map(|p| Problem {
                subject: p.subject.clone(),
                what: p.what.clone(),
                action: p.action.as_ref().map(|a| format!("{a:?}").to_lowercase()).unwrap_or_default(),
            })
            .collect();
        Ok(Response::new(VerifyResponse {
            blobs: report.blobs,
            layers: report.layers,
            rows: report.rows,
            bytes: report.bytes,
            problems,
            mounts: report.mounts,
        }))
    }

    async fn cache_mounts(
        &self,
        request: Request<CacheMountsRequest>,
    ) -> Result<Response<CacheMountsResponse>, Status> {
        let (store, measure) = (self.engine.parts().store.clone(), request.into_inner().measure);
        let listed = tokio::task::spawn_blocking(move || store.cache_mounts(measure)).await;
        let mounts = listed.map_err(|e| Status::internal(e.to_string()))?;
        Ok(Response::new(CacheMountsResponse { mounts: mounts.into_iter().map(cache_mounts::mount).collect() }))
    }

    async fn remove_cache_mounts(
        &self,
        request: Request<RemoveCacheMountsRequest>,
    ) -> Result<Response<RemoveCacheMountsResponse>, Status> {
        let (store, directories) = (self.engine.parts().store.clone(), request.into_inner().directories);
        let removed = tokio::task::spawn_blocking(move || store.remove_cache_mounts(&directories)).await;
        removed.map_err(|e| Status::internal(e.to_string()))?.map_err(|e| cache_mounts::status(&e))?;
        Ok(Response::new(RemoveCacheMountsResponse {}))
    }

    type ListCacheFilesStream = Told<CacheFiles>;

    async fn list_cache_files(
        &self,
        request: Request<CachePath>,
    ) -> Result<Response<Self::ListCacheFilesStream>, Status> {
        Ok(self.cache_files(request, cache_mounts::list))
    }

    type ReadCacheFileStream = Told<CacheFileData>;

    async fn read_cache_file(
        &self,
        request: Request<CachePath>,
    ) -> Result<Response<Self::ReadCacheFileStream>, Status> {
        Ok(self.cache_files(request, cache_mounts::read))
    }

    type FollowStream = Pin<Box<dyn Stream<Item = Result<FollowResponse, Status>> + Send>>;

    async fn follow(&self, request: Request<FollowRequest>) -> Result<Response<Self::FollowStream>, Status> {
        let reference = request.into_inner().r#ref;
        let reader = self.engine.status(&reference).await.map_err(|e| Status::not_found(e.to_string()))?;
        Ok(Response::new(Box::pin(reasons::follow(reader))))
    }

    async fn reasons(&self, request: Request<ReasonsRequest>) -> Result<Response<ReasonsResponse>, Status> {
        let (engine, reference) = (self.engine.clone(), request.into_inner().r#ref);
        let recorded = tokio::task::spawn_blocking(move || reasons::recorded(&engine, &reference));
        recorded.await.map_err(|e| Status::internal(e.to_string()))?.map(Response::new)
    }

    type RunStream = Pin<Box<dyn Stream<Item = Result<RunOutput, Status>> + Send>>;

    async fn run(&self, request: Request<Streaming<RunInput>>) -> Result<Response<Self::RunStream>, Status> {
        let uid = request.extensions().get::<Peer>().and_then(|peer| peer.uid);
        let own = uid == Some(rustix::process::geteuid().as_raw());
        let (outgoing, messages) = tokio::sync::mpsc::channel(MESSAGES);
        // A task of its own: it sees the client go and ends the process in good order.
        tokio::spawn(runs::serve(self.engine.clone(), own, request.into_inner(), outgoing));
        Ok(Response::new(Box::pin(ReceiverStream::new(messages))))
    }
}
