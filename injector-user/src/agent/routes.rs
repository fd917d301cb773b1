//! The routes of the API and the middleware that all requests pass.

use std::{
    collections::{BTreeMap, VecDeque},
    convert::Infallible,
    sync::{Arc, Mutex, PoisonError, atomic::AtomicUsize, atomic::Ordering::Relaxed},
    time::{Duration, Instant},
};

use aide::{
    axum::{
        ApiRouter,
        routing::{delete_with, get_with, post_with},
    },
    openapi::{Info, License, OpenApi},
    transform::TransformOperation,
};
use axum::{
    Extension, Json, Router,
    body::to_bytes,
    extract::{DefaultBodyLimit, Path, Request, State},
    http::{HeaderName, HeaderValue, Method, StatusCode, header},
    middleware::{self, Next},
    response::{
        IntoResponse, Response, Sse,
        sse::{self},
    },
};
use bytes::Bytes;
use futures_util::stream;
use schemars::JsonSchema;
use serde::Deserialize;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, broadcast::error::RecvError, watch};

use super::{
    Limits,
    access::{Access, Peer, TokenName},
    api::{Code, Fault, FaultList, FaultRequest, Health, Phase, Problem},
    audit::{self, Audit, Record, Subject},
    board::{Board, Change, What},
    keeper::Handle,
    metrics,
    plan::{self, Plan},
    selection::Cluster,
};
use crate::kernel::clock::monotonic_ns;

/// Keep-alive interval of event streams.
const ALIVE: Duration = Duration::from_secs(15);

/// Maximum length of a library's error message in a response.
const MAX_MESSAGE: usize = 4096;

/// Maximum length of a logged path: fits the longest name.
const MAX_PATH: usize = 256;

/// Maximum length of a logged method; clients may send arbitrary ones.
const MAX_METHOD: usize = 32;

/// Maximum number of requests that are checked at a time.
pub const MAX_CHECKS: usize = 8;

/// A fault manager that was not seen for this long counts as hung.
pub const HUNG: Duration = Duration::from_secs(10);

/// State shared by all requests.
#[derive(Debug)]
pub struct Agent {
    /// The faults.
    pub board: Arc<Board>,
    /// The handle for changing them.
    pub keeper: Handle,
    /// The pods of this node.
    pub cluster: Cluster,
    /// Access control.
    pub access: Access,
    /// The audit log.
    pub audit: Audit,
    /// The limits.
    pub limits: Limits,
    /// Number of open connections.
    pub connections: AtomicUsize,
    /// Request counts by method and status.
    requests: Mutex<BTreeMap<(String, u16), u64>>,
    /// Permits for event streams.
    watchers: Arc<Semaphore>,
    /// Permits for checks, which may wait for name servers. Other work that blocks has threads of
    /// its own.
    checks: Semaphore,
    /// Whether the agent is shutting down.
    ending: watch::Receiver<bool>,
}

impl Agent {
    /// Creates the state with zero counts.
    #[must_use]
    pub fn new(
        board: Arc<Board>,
        keeper: Handle,
        access: Access,
        audit: Audit,
        limits: Limits,
        ending: watch::Receiver<bool>,
    ) -> Self {
        Self {
            board,
            keeper,
            cluster: Cluster::default(),
            access,
            audit,
            limits,
            connections: AtomicUsize::new(0),
            requests: Mutex::default(),
            checks: Semaphore::new(MAX_CHECKS),
            watchers: Arc::new(Semaphore::new((limits.connections / 2).max(1))),
            ending,
        }
    }

    fn count(&self, method: &Method, status: StatusCode) {
        // Unknown methods share one counter, so that clients cannot create counters at will.
        const KNOWN: [Method; 6] =
            [Method::GET, Method::HEAD, Method::POST, Method::PUT, Method::DELETE, Method::PATCH];
        let method = if KNOWN.contains(method) { method.as_str() } else { "other" };
        let mut requests = self.requests.lock().unwrap_or_else(PoisonError::into_inner);
        *requests.entry((method.to_owned(), status.as_u16())).or_default() += 1;
    }
}

/// Waits until the agent shuts down.
pub async fn shutdown_requested(ending: &mut watch::Receiver<bool>) {
    // A dropped sender means shutdown too.
    let _ = ending.wait_for(|ending| *ending).await;
}

type Shared = State<Arc<Agent>>;

/// The authenticated client, for logs.
#[derive(Clone, Debug)]
struct Asker(String);

/// The name of a fault in a path.
#[derive(Debug, Deserialize, JsonSchema)]
struct Named {
    /// The fault's name.
    name: String,
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut response = (status, Json(&self)).into_response();
        if status == StatusCode::UNAUTHORIZED {
            let scheme = HeaderValue::from_static("Bearer");
            response.headers_mut().insert(header::WWW_AUTHENTICATE, scheme);
        }
        response.extensions_mut().insert(self);
        response
    }
}

/// The API description, as served at `/openapi.json`.
#[must_use]
pub fn description() -> OpenApi {
    described().1
}

/// All routes and middleware.
pub fn router(agent: Arc<Agent>) -> Router {
    let (routes, api) = described();
    // Rendered once: the response never changes.
    let page = serde_json::to_vec(&api).map(Bytes::from).map_err(|error| error.to_string());
    let describe = move || {
        let page = page.clone();
        async move {
            match page {
                Ok(page) => ([(header::CONTENT_TYPE, "application/json")], page).into_response(),
                Err(error) => Problem::new(Code::Failed, error).into_response(),
            }
        }
    };
    routes
        .route("/openapi.json", axum::routing::get(describe))
        .fallback(|| async { Problem::new(Code::NotFound, "there is nothing here") })
        .layer(DefaultBodyLimit::max(agent.limits.body))
        .layer(middleware::from_fn_with_state(agent.clone(), oversee))
        .with_state(agent)
}

fn described() -> (Router<Arc<Agent>>, OpenApi) {
    aide::generate::extract_schemas(true);
    let mut api = OpenApi {
        info: Info {
            title: "injector agent".into(),
            summary: Some("Faults packets, clocks and processes of a host".into()),
            version: env!("CARGO_PKG_VERSION").into(),
            license: Some(License {
                name: "Apache-2.0 OR MIT".into(),
                identifier: Some("Apache-2.0 OR MIT".into()),
                ..License::default()
            }),
            ..Info::default()
        },
        ..OpenApi::default()
    };
    let routes = ApiRouter::new()
        .api_route(
            "/v1/faults",
            get_with(list, |op| {
                op.id("listFaults")
                    .summary("List the faults that act, and the last ones that did")
                    .response::<200, Json<FaultList>>()
            })
            .post_with(create, |op| {
                let op = op.id("createFault").summary("Begin a fault").description(
                    "It ends with its time, when its lease is not renewed, when it is deleted, and with the agent. If \
                     anything about it is refused, nothing is done. What counts is at most 250 ms old.",
                );
                failing(op.response::<201, Json<Fault>>(), &[400, 409, 413, 415, 422, 429, 500])
            }),
        )
        .api_route(
            "/v1/faults/{name}",
            get_with(get, |op| {
                let op = op.id("getFault").summary("See a fault, with what each of its rules did");
                failing(op.response::<200, Json<Fault>>(), &[404])
            })
            .merge(delete_with(remove, |op| {
                let op = op.id("deleteFault").summary("End a fault, and see what it did");
                failing(op.response::<200, Json<Fault>>(), &[404])
            })),
        )
        .api_route(
            "/v1/faults/{name}/renew",
            post_with(renew, |op| {
                let op = op.id("renewFault").summary("Renew the lease of a fault");
                failing(op.response::<200, Json<Fault>>(), &[404, 409])
            }),
        )
        .api_route(
            "/v1/faults/{name}/events",
            get_with(watch_one, |op| {
                let op = events(op.id("watchFault").summary("Watch a fault to its end"));
                failing(op, &[404, 429])
            }),
        )
        .api_route(
            "/v1/events",
            get_with(watch_all, |op| {
                failing(events(op.id("watchFaults").summary("Watch all faults")), &[429])
            }),
        )
        .api_route(
            "/healthz",
            get_with(health, |op| {
                op.id("health")
                    .summary("Whether the agent works; asked without a token")
                    .response::<200, Json<Health>>()
                    .response::<503, Json<Health>>()
            }),
        )
        .api_route(
            "/metrics",
            get_with(measure, |op| {
                op.id("metrics")
                    .summary("Metrics, as Prometheus reads them")
                    .response_with::<200, String, _>(|answer| {
                        answer.description("The text format, version 0.0.4")
                    })
            }),
        );
    let routes = routes.finish_api(&mut api);
    (routes, api)
}

fn events(op: TransformOperation<'_>) -> TransformOperation<'_> {
    op.description(
        "A stream of server-sent events. Its events are `state` (of each fault, at first, and when events were missed), \
         `created`, `renewed`, `counted` (at most once a second), `changed` (addresses of peers) and `ended`; their data \
         is the fault, without its rules.",
    )
    .response_with::<200, String, _>(|answer| answer.description("text/event-stream"))
}

/// Documents the statuses with which an operation may fail, besides the common ones.
fn failing<'t>(op: TransformOperation<'t>, statuses: &[u16]) -> TransformOperation<'t> {
    let op = op
        .response::<401, Json<Problem>>()
        .response::<403, Json<Problem>>()
        .response::<503, Json<Problem>>();
    statuses.iter().fold(op, |op, status| match status {
        400 => op.response::<400, Json<Problem>>(),
        404 => op.response::<404, Json<Problem>>(),
        409 => op.response::<409, Json<Problem>>(),
        413 => op.response::<413, Json<Problem>>(),
        415 => op.response::<415, Json<Problem>>(),
        422 => op.response::<422, Json<Problem>>(),
        429 => op.response::<429, Json<Problem>>(),
        _ => op.response::<500, Json<Problem>>(),
    })
}

/// Middleware of all requests: authorizes, applies the time limit, counts and audits.
async fn oversee(State(agent): Shared, mut request: Request, next: Next) -> Response {
    let began = Instant::now();
    let method = request.method().clone();
    let path = request.uri().path().to_owned();
    let peer = request.extensions().get::<Peer>().cloned();
    let let_in = match &peer {
        // Health checks reveal nothing and need no token.
        Some(_) if path == "/healthz" => Ok(None),
        Some(peer) => agent.access.check(peer, request.headers()),
        None => Err(Problem::new(Code::Forbidden, "nobody asks")),
    };
    // Unauthenticated TCP clients must not hold connections: close after rejections and health
    // checks.
    let is_stranger =
        matches!(peer, Some(Peer::Tcp { .. })) && (path == "/healthz" || let_in.is_err());
    let (token, response) = match let_in {
        Ok(token) => {
            let who = peer.as_ref().map(ToString::to_string).unwrap_or_default();
            let asker = match &token {
                Some(TokenName(name)) => format!("{name} at {who}"),
                None => who,
            };
            request.extensions_mut().insert(Asker(asker));
            let answer = tokio::time::timeout(agent.limits.request, next.run(request)).await;
            let late = || {
                let message = format!("this took longer than {:?}", agent.limits.request);
                Problem::new(Code::Busy, message).into_response()
            };
            (token, answer.unwrap_or_else(|_| late()))
        }
        Err(problem) => (None, problem.into_response()),
    };
    let mut response = in_json(response).await;
    if is_stranger {
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    let status = response.status();
    agent.count(&method, status);
    let problem = response.extensions().get::<Problem>();
    if let Some(problem) = problem {
        agent.board.count_problem(problem.error);
    }
    if let Some(peer) = &peer
        && agent.audit.wants(&method, status)
    {
        let written = agent.audit.write(&Record {
            peer,
            token: audit::token_name(token.as_ref()),
            method: method.as_str().get(..MAX_METHOD).unwrap_or(method.as_str()),
            path: &path[..path.floor_char_boundary(MAX_PATH)],
            status: status.as_u16(),
            error: problem.map(|problem| audit::cut(problem.message.clone())).as_deref(),
            subject: response.extensions().get::<Subject>(),
            took_ms: audit::milliseconds(began.elapsed()),
        });
        written.wait().await;
    }
    response
}

/// Converts plain-text errors of libraries to JSON.
async fn in_json(response: Response) -> Response {
    let status = response.status();
    let is_problem = response.extensions().get::<Problem>().is_some();
    if is_problem || !(status.is_client_error() || status.is_server_error()) {
        return response;
    }
    let is_json = response
        .headers()
        .get(header::CONTENT_TYPE)
        .is_some_and(|kind| kind.as_bytes().starts_with(b"application/json"));
    if is_json {
        return response;
    }
    let (parts, body) = response.into_parts();
    let text = to_bytes(body, MAX_MESSAGE).await.unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let message = match text.as_ref() {
        "" => status.canonical_reason().unwrap_or("refused").to_lowercase(),
        text => text.to_owned(),
    };
    let problem =
        Problem { status: status.as_u16(), error: Code::of_status(status.as_u16()), message };
    let mut response = problem.into_response();
    if let Some(allow) = parts.headers.get(header::ALLOW) {
        response.headers_mut().insert(header::ALLOW, allow.clone());
    }
    response
}

async fn list(State(agent): Shared) -> Response {
    let faults = agent.board.all().iter().map(|fault| fault.in_short()).collect();
    Json(FaultList { faults }).into_response()
}

async fn create(
    State(agent): Shared,
    Extension(Asker(asker)): Extension<Asker>,
    Json(request): Json<FaultRequest>,
) -> Response {
    let mut subject = Subject {
        fault: request.name.clone().map(audit::cut),
        target: audit::in_short(&request.target),
        faults: None,
    };
    let pods = request.target.pods.clone();
    let answer = match pods {
        None => match plan(&agent, request).await {
            Ok(plan) => {
                subject.agree(&plan.terms);
                agent.keeper.create(plan, asker).await
            }
            Err(problem) => Err(problem),
        },
        Some(pods) => match check(&agent, || plan::select(request, pods)).await {
            Ok(selection) => {
                subject.agree(&selection.terms);
                agent.cluster.create(selection, asker).await
            }
            Err(problem) => Err(problem),
        },
    };
    let mut response = match answer {
        Ok(fault) => {
            let place = HeaderValue::from_str(&format!("/v1/faults/{}", fault.name)).ok();
            let place: Vec<(HeaderName, HeaderValue)> =
                place.map(|place| (header::LOCATION, place)).into_iter().collect();
            let mut response = (StatusCode::CREATED, Json(&*fault)).into_response();
            response.headers_mut().extend(place);
            response
        }
        Err(problem) => problem.into_response(),
    };
    response.extensions_mut().insert(subject);
    response
}

/// Validates a request and resolves its names.
async fn plan(agent: &Agent, request: FaultRequest) -> Result<Plan, Problem> {
    let peers = agent.cluster.find(plan::cluster_peers(&request.rules)).await?;
    check(agent, || plan::plan(request, peers)).await
}

/// Runs work that may block.
async fn check<T: Send + 'static>(
    agent: &Agent,
    check: impl FnOnce() -> Result<T, Problem> + Send + 'static,
) -> Result<T, Problem> {
    // The semaphore is never closed.
    let _permit = agent.checks.acquire().await;
    let checked = tokio::task::spawn_blocking(check).await;
    checked.unwrap_or_else(|_| Err(Problem::new(Code::Failed, "cannot check it")))
}

async fn get(State(agent): Shared, Path(Named { name }): Path<Named>) -> Response {
    match agent.board.find(&name) {
        Some(fault) => Json(&*fault).into_response(),
        None => Problem::new(Code::NotFound, format!("there is no fault {name}")).into_response(),
    }
}

async fn renew(State(agent): Shared, Path(Named { name }): Path<Named>) -> Response {
    about(name.clone(), agent.keeper.renew(name).await)
}

async fn remove(State(agent): Shared, Path(Named { name }): Path<Named>) -> Response {
    about(name.clone(), agent.keeper.delete(name).await)
}

fn about(name: String, answer: Result<Arc<Fault>, Problem>) -> Response {
    let mut response = match answer {
        Ok(fault) => Json(&*fault).into_response(),
        Err(problem) => problem.into_response(),
    };
    response
        .extensions_mut()
        .insert(Subject { fault: Some(audit::cut(name)), ..Subject::default() });
    response
}

async fn health(State(agent): Shared) -> Response {
    let silent = Duration::from_nanos(agent.board.silent_ns());
    let problem = if silent > HUNG {
        Some(format!("the thread that owns the faults was not seen for {silent:?}"))
    } else {
        let hangs = agent.cluster.hangs(monotonic_ns());
        hangs.map(|silent| format!("the Kubernetes reconciler was not seen for {silent:?}"))
    };
    let hangs = problem.is_some();
    let health = Health {
        status: problem.unwrap_or_else(|| Health::OK.into()),
        active: agent.board.active().len(),
        version: env!("CARGO_PKG_VERSION").into(),
    };
    let status = if hangs { StatusCode::SERVICE_UNAVAILABLE } else { StatusCode::OK };
    (status, Json(health)).into_response()
}

async fn measure(State(agent): Shared) -> Response {
    let requests = agent.requests.lock().unwrap_or_else(PoisonError::into_inner).clone();
    match metrics::page(&agent.board, &requests, agent.connections.load(Relaxed)) {
        Ok(page) => ([(header::CONTENT_TYPE, metrics::CONTENT_TYPE)], page).into_response(),
        Err(error) => Problem::from_error(Code::Failed, error).into_response(),
    }
}

async fn watch_all(State(agent): Shared) -> Response {
    watch(&agent, None)
}

async fn watch_one(State(agent): Shared, Path(Named { name }): Path<Named>) -> Response {
    match agent.board.find(&name) {
        Some(_) => watch(&agent, Some(name)),
        None => Problem::new(Code::NotFound, format!("there is no fault {name}")).into_response(),
    }
}

/// The state of an event stream.
struct Watcher {
    board: Arc<Board>,
    changes: tokio::sync::broadcast::Receiver<Change>,
    ending: watch::Receiver<bool>,
    /// The fault to report; all if `None`.
    only: Option<String>,
    pending: VecDeque<Change>,
    is_over: bool,
    _place: OwnedSemaphorePermit,
}

fn watch(agent: &Agent, only: Option<String>) -> Response {
    let Ok(place) = agent.watchers.clone().try_acquire_owned() else {
        return Problem::new(Code::TooMany, "as many watch as may").into_response();
    };
    let mut watcher = Watcher {
        board: agent.board.clone(),
        // Subscribes before the first snapshot, so that no change is missed.
        changes: agent.board.watch(),
        ending: agent.ending.clone(),
        only,
        pending: VecDeque::new(),
        is_over: false,
        _place: place,
    };
    watcher.look();
    let events = stream::unfold(watcher, |mut watcher| async {
        let event = watcher.next().await?;
        Some((Ok::<_, Infallible>(event), watcher))
    });
    Sse::new(events).into_response()
}

impl Watcher {
    /// Reads the current faults.
    fn look(&mut self) {
        let faults = match &self.only {
            Some(name) => self.board.find(name).into_iter().collect(),
            None => self.board.all(),
        };
        let state = |fault| Change { what: What::State, fault };
        self.pending = faults.into_iter().map(state).collect();
    }

    async fn next(&mut self) -> Option<sse::Event> {
        loop {
            if let Some(Change { what, fault }) = self.pending.pop_front() {
                self.is_over |= self.only.is_some() && fault.phase == Phase::Ended;
                return sse::Event::default().event(what.name()).json_data(fault.in_short()).ok();
            }
            if self.is_over {
                return None;
            }
            let changed = tokio::select! {
                biased;
                changed = self.changes.recv() => changed,
                () = shutdown_requested(&mut self.ending) => return None,
                () = tokio::time::sleep(ALIVE) => return Some(sse::Event::default().comment("alive")),
            };
            match changed {
                Ok(change) => {
                    if self.only.as_ref().is_none_or(|name| *name == change.fault.name) {
                        self.pending.push_back(change);
                    }
                }
                Err(RecvError::Lagged(_)) => self.look(),
                Err(RecvError::Closed) => return None,
            }
        }
    }
}
