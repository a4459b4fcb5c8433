//! From one request to its answer.

use std::convert::Infallible;
use std::future::Future;
use std::sync::Arc;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use hyper::{Request, Response, StatusCode};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tvix_node_protocol::control::{
    CONTROL_VERSION, Failure, FailureKind, PathQuery, VERSION_HEADER, WorkerMessage,
};

use super::api::{ApiError, ControlApi};
use super::body::{AnswerBody, Events, UploadBody, UploadError, collect};
use super::route::{Route, RouteError};
use super::server::{Connection, Server};
use crate::limits::{BATCH_BYTES, BATCH_DEPTH, JSON_BYTES, PATH_QUERY_BYTES};

type Answer = Response<AnswerBody>;

/// Answers one request. What goes wrong becomes an answer too.
pub(super) async fn answer<A: ControlApi>(
    server: Arc<Server<A>>,
    connection: Arc<Connection>,
    request: Request<Incoming>,
) -> Result<Answer, Infallible> {
    if !connection.owner {
        let error = ApiError::new(
            FailureKind::Forbidden,
            "this node belongs to another user; use a node of your own (TVIX_NODE_HOME says whose is used)",
        );
        return Ok(failed(&error));
    }
    // Over HTTP/1 the next request comes after the last answer was read to its end.
    server.leave(connection.take()).await;
    let busy = connection.busy.clone();
    // A task of its own runs to its end when the client hangs up, where this future is dropped.
    let work = tokio::spawn(async move {
        let answer = respond(server, connection, request).await;
        drop(busy);
        answer
    });
    Ok(match work.await {
        Ok(Ok(answer)) => answer,
        Ok(Err(error)) => {
            tracing::debug!(%error, "a request was refused or failed");
            failed(&error)
        }
        Err(panic) => failed(&ApiError::caused(
            FailureKind::Internal,
            "the node failed at this request; this is a bug in tvix-node",
            panic,
        )),
    })
}

async fn respond<A: ControlApi>(
    server: Arc<Server<A>>,
    connection: Arc<Connection>,
    request: Request<Incoming>,
) -> Result<Answer, ApiError> {
    let route = match Route::parse(request.method(), request.uri()) {
        Ok(route) => route,
        Err(error @ RouteError::Method { wanted, .. }) => {
            let mut answer = failed(&ApiError::new(FailureKind::Invalid, error.to_string()));
            *answer.status_mut() = StatusCode::METHOD_NOT_ALLOWED;
            answer
                .headers_mut()
                .insert(ALLOW, HeaderValue::from_static(wanted));
            return Ok(answer);
        }
        Err(error @ RouteError::NoSuchAddress(_)) => {
            return Err(ApiError::new(FailureKind::NotFound, error.to_string()));
        }
        Err(error) => return Err(ApiError::new(FailureKind::Invalid, error.to_string())),
    };
    if route != Route::Down {
        check_version(&request)?;
    }
    let api = &server.api;
    let body = request.into_body();
    match route {
        Route::Status => json(&api.status().await?),
        Route::Down => empty(api.stop()).await,
        Route::OpenSession => {
            // What an older or newer command sends may not even parse: its version comes first.
            let value: serde_json::Value = read_json(body, JSON_BYTES).await?;
            let version = value.get("version").and_then(serde_json::Value::as_u64);
            if let Some(version) = version
                && version != u64::from(CONTROL_VERSION)
            {
                return Err(other_version(&version.to_string()));
            }
            let request = serde_json::from_value(value).map_err(|error| not_json(&error))?;
            let opened = api.open_session(request).await?;
            server.opened(opened.session, connection.busy.clone());
            json(&opened)
        }
        Route::Events(session) => {
            let receiver = api.events(session).await?;
            server.watched(session, &connection).await;
            Ok(found(
                AnswerBody::Events(Events::new(receiver)),
                "application/x-ndjson",
            ))
        }
        Route::Batch(session) => {
            let bytes = collect(body, BATCH_BYTES).await.map_err(unreadable)?;
            empty(api.take_batch(session, read_batch(&bytes)?)).await
        }
        Route::AddSource(session, source) => {
            let (archive, rest) = UploadBody::new(body);
            let answer = api.add_source(session, source, archive).await;
            tokio::spawn(rest.discard());
            json(&answer?)
        }
        Route::FindSource(session) => {
            let query = read_json(body, JSON_BYTES).await?;
            json(&api.find_source(session, query).await?)
        }
        Route::Paths => {
            let query: PathQuery = read_json(body, PATH_QUERY_BYTES).await?;
            json(&api.path_infos(query.paths, query.session).await?)
        }
        Route::Log(path) => Ok(found(AnswerBody::Log(api.log(path).await?), "text/plain")),
        Route::Why(path) => json(&api.why(path).await?),
        Route::Records(path) => json(&api.records(path).await?),
        Route::AddRoot => {
            let root = read_json(body, JSON_BYTES).await?;
            empty(api.add_root(root)).await
        }
        Route::Store => {
            let question = read_json(body, PATH_QUERY_BYTES).await?;
            json(&api.ask_store(question).await?)
        }
        Route::Archive(path) => Ok(found(
            AnswerBody::Log(api.archive(path).await?),
            "application/x-nix-archive",
        )),
        Route::Export => {
            let query: PathQuery = read_json(body, PATH_QUERY_BYTES).await?;
            Ok(found(
                AnswerBody::Log(api.export(query.paths).await?),
                "application/octet-stream",
            ))
        }
        Route::Import => {
            let (export, rest) = UploadBody::new(body);
            let answer = api.import(export).await;
            tokio::spawn(rest.discard());
            json(&answer?)
        }
        Route::Invite => {
            let request = read_json(body, JSON_BYTES).await?;
            json(&api.invite(request).await?)
        }
        Route::Join => {
            let request = read_json(body, JSON_BYTES).await?;
            json(&api.join(request).await?)
        }
        Route::FounderKey => json(&api.founder_key().await?),
        Route::Team(team) => json(&api.team(team).await?),
        Route::Peers(team) => json(&api.peers(team).await?),
        Route::Revoke => {
            let member = read_json(body, JSON_BYTES).await?;
            json(&api.revoke(member).await?)
        }
        Route::Renew => {
            let request = read_json(body, JSON_BYTES).await?;
            empty(api.renew(request)).await
        }
        Route::Leave => {
            let request = read_json(body, JSON_BYTES).await?;
            empty(api.leave(request)).await
        }
        Route::Owner => {
            let question = read_json(body, JSON_BYTES).await?;
            json(&api.ask_owner(question).await?)
        }
    }
}

fn check_version(request: &Request<Incoming>) -> Result<(), ApiError> {
    match request.headers().get(VERSION_HEADER) {
        Some(version) if version.as_bytes() != CONTROL_VERSION.to_string().as_bytes() => {
            Err(other_version(&String::from_utf8_lossy(version.as_bytes())))
        }
        _ => Ok(()),
    }
}

fn other_version(theirs: &str) -> ApiError {
    ApiError::new(
        FailureKind::Version,
        format!(
            "this command speaks version {theirs} of the control protocol and the node that is up version \
             {CONTROL_VERSION}: run 'tvix-node down', then the command again"
        ),
    )
}

async fn read_json<T: DeserializeOwned>(body: Incoming, limit: usize) -> Result<T, ApiError> {
    let bytes = collect(body, limit).await.map_err(unreadable)?;
    serde_json::from_slice(&bytes).map_err(|error| not_json(&error))
}

fn read_batch(bytes: &[u8]) -> Result<Vec<WorkerMessage>, ApiError> {
    let mut rest = bytes;
    let invalid = |reason: String| {
        ApiError::new(
            FailureKind::Invalid,
            format!("the body is not a batch of an evaluation in CBOR: {reason}"),
        )
    };
    let batch = ciborium::de::from_reader_with_recursion_limit(&mut rest, BATCH_DEPTH)
        .map_err(|error| invalid(error.to_string()))?;
    if rest.is_empty() {
        Ok(batch)
    } else {
        Err(invalid(format!("{} bytes follow its end", rest.len())))
    }
}

fn not_json(error: &serde_json::Error) -> ApiError {
    ApiError::new(
        FailureKind::Invalid,
        format!("the body is not the JSON that is taken here: {error}"),
    )
}

fn unreadable(error: UploadError) -> ApiError {
    let kind = match error {
        UploadError::TooLarge { .. } => FailureKind::TooLarge,
        UploadError::Torn(_) => FailureKind::Invalid,
    };
    ApiError::new(kind, error.to_string())
}

async fn empty(work: impl Future<Output = Result<(), ApiError>>) -> Result<Answer, ApiError> {
    work.await?;
    Ok(response(
        StatusCode::NO_CONTENT,
        AnswerBody::Whole(Full::default()),
    ))
}

fn json<T: Serialize>(value: &T) -> Result<Answer, ApiError> {
    let bytes = serde_json::to_vec(value).map_err(|error| {
        ApiError::caused(
            FailureKind::Internal,
            "the answer cannot be written as JSON",
            error,
        )
    })?;
    Ok(found(whole(bytes), "application/json"))
}

fn whole(bytes: Vec<u8>) -> AnswerBody {
    AnswerBody::Whole(Full::new(Bytes::from(bytes)))
}

fn found(body: AnswerBody, kind: &'static str) -> Answer {
    let mut answer = response(StatusCode::OK, body);
    answer
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    answer
}

fn failed(error: &ApiError) -> Answer {
    let failure = error.to_failure();
    let bytes = serde_json::to_vec(&failure).unwrap_or_else(|_| b"{}".to_vec());
    let mut answer = found(whole(bytes), "application/json");
    *answer.status_mut() = status(&failure);
    answer
}

const fn status(failure: &Failure) -> StatusCode {
    match failure.kind {
        FailureKind::Invalid => StatusCode::BAD_REQUEST,
        FailureKind::Forbidden => StatusCode::FORBIDDEN,
        FailureKind::NotFound => StatusCode::NOT_FOUND,
        FailureKind::Conflict | FailureKind::Version => StatusCode::CONFLICT,
        FailureKind::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
        FailureKind::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        FailureKind::NoSpace => StatusCode::INSUFFICIENT_STORAGE,
        FailureKind::Internal => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

fn response(status: StatusCode, body: AnswerBody) -> Answer {
    let mut answer = Response::new(body);
    *answer.status_mut() = status;
    answer
        .headers_mut()
        .insert(VERSION_HEADER, HeaderValue::from(CONTROL_VERSION));
    answer
}
