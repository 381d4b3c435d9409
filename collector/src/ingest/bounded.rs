//! The calls of `weir.v1.Ingest` that carry one certificate request. The service takes messages of half a mebibyte, because
//! segments are that long; a stranger's enrolment gets neither that much room nor all the time in the world.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use http_body_util::Limited;
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::{Service, http};
use tonic::server::NamedService;

/// A request of the small calls, with its gRPC frame.
pub const SMALL_BYTES_MAX: usize = 32 * 1024;
/// From its head to its answer.
const SMALL_TIMEOUT: Duration = Duration::from_secs(10);
const SMALL_CALLS: [&str; 2] = ["/weir.v1.Ingest/Enroll", "/weir.v1.Ingest/Renew"];

/// The service, its small calls bounded.
#[derive(Clone)]
pub struct Bounded<S>(pub S);

impl<S: NamedService> NamedService for Bounded<S> {
    const NAME: &'static str = S::NAME;
}

type Answering<R> = Pin<Box<dyn Future<Output = Result<R, Infallible>> + Send>>;

impl<S> Service<http::Request<Body>> for Bounded<S>
where
    S: Service<http::Request<Body>, Response = http::Response<Body>, Error = Infallible>,
    S::Future: Send + 'static,
{
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Answering<Self::Response>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.0.poll_ready(context)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        if !SMALL_CALLS.contains(&request.uri().path()) {
            return Box::pin(self.0.call(request));
        }
        let request = request.map(|body| Body::new(Limited::new(body, SMALL_BYTES_MAX)));
        let answer = self.0.call(request);
        Box::pin(async move {
            match tokio::time::timeout(SMALL_TIMEOUT, answer).await {
                Ok(answer) => answer,
                Err(_) => {
                    Ok(Status::deadline_exceeded("the request did not come to its end in time").into_http())
                }
            }
        })
    }
}
