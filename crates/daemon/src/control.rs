//! BuildKit's control service over the engine.

use std::pin::Pin;
use std::time::Duration;

use futures::{Stream, StreamExt};
use kiln_engine::Engine;
use kiln_session::SessionHeaders;
use kiln_session::proto::control::control_server::Control;
use kiln_session::proto::control::{
    BuildHistoryEvent, BuildHistoryRequest, BytesMessage, DiskUsageRequest, DiskUsageResponse, InfoRequest,
    InfoResponse, ListWorkersRequest, ListWorkersResponse, PruneRequest, SolveRequest, SolveResponse, StatusRequest,
    StatusResponse, UpdateBuildHistoryRequest, UpdateBuildHistoryResponse, UsageRecord,
};
use kiln_session::tunnel::Tunnel;
use kiln_store::PrunePolicy;
use tonic::{Request, Response, Status, Streaming};

use crate::{convert, history, status, workers};

/// Tells clients how many builds run; they let an idle engine of another build go.
const BUSY: &str = "kiln-running-builds";
/// The engine's clock, so that clients can correct what they show.
const NOW: &str = "buildkit-current-timestamp";
/// Records of a prune that may wait for a slow client.
const PRUNED: usize = 64;

/// The control service.
pub struct ControlService {
    pub engine: Engine,
    pub about: workers::About,
}

type BoxStream<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

fn stamped<T>(message: T) -> Response<T> {
    let mut response = Response::new(message);
    if let Ok(now) = jiff::Timestamp::now().to_string().parse() {
        response.metadata_mut().insert(NOW, now);
    }
    response
}

fn usage_record(record: &kiln_store::UsageRecord) -> UsageRecord {
    let at = |seconds: u64| Some(convert::time(std::time::UNIX_EPOCH + Duration::from_secs(seconds)));
    UsageRecord {
        id: record.id.clone(),
        mutable: record.mutable,
        in_use: record.in_use,
        size: i64::try_from(record.size).unwrap_or(i64::MAX),
        parent: String::new(),
        created_at: at(record.created_at),
        last_used_at: at(record.last_used_at),
        usage_count: i64::try_from(record.usage_count).unwrap_or(i64::MAX),
        description: record.description.clone(),
        record_type: record.record_type.as_str().to_owned(),
        shared: record.shared,
        parents: record.parents.clone(),
    }
}

fn store_error(error: kiln_store::StoreError) -> Status {
    match error.class() {
        kiln_stdx::ErrorClass::UserInput => Status::invalid_argument(error.to_string()),
        _ => Status::unknown(error.to_string()),
    }
}

#[tonic::async_trait]
impl Control for ControlService {
    async fn disk_usage(&self, request: Request<DiskUsageRequest>) -> Result<Response<DiskUsageResponse>, Status> {
        let filters = request.into_inner().filter;
        let store = self.engine.parts().store.clone();
        let work = move || {
            let filters = kiln_store::Filters::parse(&filters)?;
            let records = store.usage()?;
            Ok(records.iter().filter(|r| filters.matches(r)).map(usage_record).collect())
        };
        let record = tokio::task::spawn_blocking(work)
            .await
            .map_err(|e| Status::internal(e.to_string()))?
            .map_err(store_error)?;
        Ok(Response::new(DiskUsageResponse { record }))
    }

    type PruneStream = BoxStream<UsageRecord>;

    async fn prune(&self, request: Request<PruneRequest>) -> Result<Response<Self::PruneStream>, Status> {
        let request = request.into_inner();
        let bytes = |n: i64| u64::try_from(n).unwrap_or(0);
        let policy = PrunePolicy {
            all: request.all,
            filters: request.filter,
            keep_duration: Duration::from_nanos(bytes(request.keep_duration)),
            reserved_space: bytes(request.reserved_space),
            max_used_space: bytes(request.max_used_space),
            min_free_space: bytes(request.min_free_space),
            rule: "prune, asked for".to_owned(),
        };
        let store = self.engine.parts().store.clone();
        let (sender, receiver) = tokio::sync::mpsc::channel(PRUNED);
        tokio::task::spawn_blocking(move || {
            let pruned = store.prune(&policy, |record| {
                // A client that went away does not stop what it asked for.
                let _ = sender.blocking_send(Ok(usage_record(record)));
            });
            if let Err(error) = pruned {
                let _ = sender.blocking_send(Err(store_error(error)));
            }
        });
        Ok(Response::new(Box::pin(tokio_stream::wrappers::ReceiverStream::new(receiver))))
    }

    async fn solve(&self, request: Request<SolveRequest>) -> Result<Response<SolveResponse>, Status> {
        let request = convert::solve_request(request.into_inner())?;
        // Dropping this future, as the server does when the connection is lost, cancels the build.
        match self.engine.solve(request).await {
            Ok(response) => Ok(Response::new(SolveResponse { exporter_response: response.exporter })),
            Err(error) => Err(convert::status(&error)),
        }
    }

    type StatusStream = BoxStream<StatusResponse>;

    async fn status(&self, request: Request<StatusRequest>) -> Result<Response<Self::StatusStream>, Status> {
        let reference = request.into_inner().r#ref;
        let (engine, name) = (self.engine.clone(), reference.clone());
        let kept = tokio::task::spawn_blocking(move || engine.history().logs(&name).map(|logs| status::replay(&logs)));
        if let Some(responses) = kept.await.map_err(|e| Status::internal(e.to_string()))? {
            return Ok(stamped(Box::pin(futures::stream::iter(responses.map(Ok)))));
        }
        let reader = self.engine.status(&reference).await.map_err(|e| Status::not_found(e.to_string()))?;
        Ok(stamped(Box::pin(status::stream(reader))))
    }

    type SessionStream = BoxStream<BytesMessage>;

    async fn session(
        &self,
        request: Request<Streaming<BytesMessage>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let headers = SessionHeaders::from_metadata(request.metadata()).map_err(|e| e.to_status())?;
        let (tunnel, outgoing) = Tunnel::new(request.into_inner());
        let sessions = self.engine.parts().sessions.clone();
        let id = headers.id.clone();
        tokio::spawn(async move {
            if let Err(error) = sessions.serve(headers, tunnel).await {
                tracing::debug!(session = id, %error, "session ended");
            }
        });
        Ok(Response::new(Box::pin(outgoing.map(Ok))))
    }

    async fn list_workers(&self, _: Request<ListWorkersRequest>) -> Result<Response<ListWorkersResponse>, Status> {
        Ok(Response::new(ListWorkersResponse { record: vec![workers::worker(self.engine.parts(), &self.about)] }))
    }

    async fn info(&self, _: Request<InfoRequest>) -> Result<Response<InfoResponse>, Status> {
        let mut response =
            Response::new(InfoResponse { buildkit_version: Some(workers::version(&self.about.build_id)) });
        let busy = *self.engine.active().borrow();
        response.metadata_mut().insert(BUSY, busy.into());
        Ok(response)
    }

    type ListenBuildHistoryStream = BoxStream<BuildHistoryEvent>;

    async fn listen_build_history(
        &self,
        request: Request<BuildHistoryRequest>,
    ) -> Result<Response<Self::ListenBuildHistoryStream>, Status> {
        let request = request.into_inner();
        let wanted = move |record: &kiln_engine::history::Record| {
            (request.r#ref.is_empty() || record.reference == request.r#ref)
                && (!request.active_only || record.completed == 0)
        };
        let changes = self.engine.history().changes();
        let mut past = self.engine.history().list();
        past.retain(&wanted);
        if request.limit > 0 {
            past.truncate(usize::try_from(request.limit).unwrap_or(usize::MAX));
        }
        let past: Vec<_> = past.iter().map(|record| Ok(history::state(record))).collect();
        let past = futures::stream::iter(past);
        if request.early_exit {
            return Ok(stamped(Box::pin(past)));
        }
        let future = tokio_stream::wrappers::BroadcastStream::new(changes).filter_map(move |change| {
            let event = change.ok().filter(|c| wanted(c.record())).map(|c| Ok(history::event(&c)));
            std::future::ready(event)
        });
        Ok(stamped(Box::pin(past.chain(future))))
    }

    async fn update_build_history(
        &self,
        request: Request<UpdateBuildHistoryRequest>,
    ) -> Result<Response<UpdateBuildHistoryResponse>, Status> {
        let request = request.into_inner();
        let history = self.engine.history();
        let missing = |e: kiln_engine::EngineError| Status::not_found(e.to_string());
        if request.delete {
            history.delete(&request.r#ref).map_err(missing)?;
        } else if !request.finalize {
            history.pin(&request.r#ref, request.pinned).map_err(missing)?;
        }
        Ok(Response::new(UpdateBuildHistoryResponse {}))
    }
}
