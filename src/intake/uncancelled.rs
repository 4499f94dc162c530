//! Work that continues when its caller is cancelled: hyper drops a request's future when its client hangs up.

use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::runtime::Handle;

/// Work that its caller awaits. When the caller is dropped, a task of its own finishes it; until then it costs no task.
///
/// At the runtime's end it is cancelled, like every task.
pub(super) struct Uncancelled<T: 'static> {
    work: Option<Pin<Box<dyn Future<Output = T> + Send>>>,
}

/// The work panicked.
#[derive(Debug)]
pub(super) struct Panicked;

impl<T> Uncancelled<T> {
    pub(super) fn new(work: impl Future<Output = T> + Send + 'static) -> Self {
        Self { work: Some(Box::pin(work)) }
    }
}

impl<T> Future for Uncancelled<T> {
    type Output = Result<T, Panicked>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let Some(work) = &mut self.work else { return Poll::Ready(Err(Panicked)) };
        let done = match catch_unwind(AssertUnwindSafe(|| work.as_mut().poll(cx))) {
            Ok(Poll::Pending) => return Poll::Pending,
            Ok(Poll::Ready(done)) => Ok(done),
            Err(_) => Err(Panicked),
        };
        self.work = None;
        Poll::Ready(done)
    }
}

impl<T> Drop for Uncancelled<T> {
    fn drop(&mut self) {
        if let (Some(work), Ok(runtime)) = (self.work.take(), Handle::try_current()) {
            runtime.spawn(async move { drop(work.await) });
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::task::Waker;

    use tokio::sync::oneshot;

    use super::*;

    fn runtime() -> tokio::runtime::Runtime {
        tokio::runtime::Builder::new_current_thread().build().expect("a runtime")
    }

    #[test]
    fn work_continues_when_its_caller_is_dropped() {
        runtime().block_on(async {
            let (go, gone) = oneshot::channel::<()>();
            let (done, is_done) = oneshot::channel();
            let mut work = Uncancelled::new(async move {
                let _ = gone.await;
                let _ = done.send("stored");
            });
            assert!(Pin::new(&mut work).poll(&mut Context::from_waker(Waker::noop())).is_pending());
            drop(work);
            let _ = go.send(());
            assert_eq!(is_done.await, Ok("stored"), "a client that hangs up loses its write halfway");
        });
    }

    #[test]
    fn a_panic_is_returned_and_a_result_too() {
        runtime().block_on(async {
            let held = Arc::new(());
            let theirs = held.clone();
            let panicked = Uncancelled::<()>::new(async move {
                let _theirs = theirs;
                panic!("as it should");
            });
            assert!(panicked.await.is_err());
            assert_eq!(Arc::strong_count(&held), 1, "what the work held is kept");
            assert!(matches!(Uncancelled::new(async { 7 }).await, Ok(7)));
        });
    }

    #[test]
    fn work_ends_with_its_runtime() {
        let held = Arc::new(());
        let runtime = runtime();
        let theirs = held.clone();
        runtime.spawn(Uncancelled::new(async move {
            std::future::pending::<()>().await;
            drop(theirs);
        }));
        runtime.block_on(tokio::task::yield_now());
        drop(runtime);
        assert_eq!(Arc::strong_count(&held), 1);
    }
}
