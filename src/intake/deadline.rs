//! A deadline that moves often and rarely passes.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::time::{Instant, Sleep, sleep_until};

/// The timer of a deadline that every request moves. A timer that is set for each request costs a lock twice, and a
/// system call if it is the next to expire. This one is set once: it expires too early, and is then set again.
#[derive(Debug, Default)]
pub(super) struct Deadline {
    timer: Option<Pin<Box<Sleep>>>,
}

impl Deadline {
    /// Waits until `at`, which may differ from the last call's.
    pub(super) fn poll_passed(&mut self, cx: &mut Context<'_>, at: Instant) -> Poll<()> {
        let timer = self.timer.get_or_insert_with(|| Box::pin(sleep_until(at)));
        if timer.deadline() > at {
            timer.as_mut().reset(at);
        }
        loop {
            ready!(timer.as_mut().poll(cx));
            if timer.deadline() >= at {
                return Poll::Ready(());
            }
            timer.as_mut().reset(at);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_deadline_passes_when_it_was_last_set_to() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
        runtime.block_on(async {
            let mut deadline = Deadline::default();
            let began = Instant::now();
            let later = began + Duration::from_millis(30);
            let mut polls = 0;
            // Moved later after the timer was set, and then earlier.
            poll_fn(|cx| {
                polls += 1;
                let at = if polls == 1 { began + Duration::from_millis(1) } else { later };
                deadline.poll_passed(cx, at)
            })
            .await;
            assert!(Instant::now() >= later, "it passed too early");
            let far = Instant::now() + Duration::from_secs(3600);
            poll_fn(|cx| Poll::Ready(deadline.poll_passed(cx, far))).await.is_pending().then_some(()).expect("not yet");
            poll_fn(|cx| deadline.poll_passed(cx, Instant::now())).await;
        });
    }
}
