//! A device with its queue, and whether it still works.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
#[cfg(target_arch = "wasm32")]
use std::task::Waker;

/// A device and its queue; cheap to clone. Everything here goes on after the device is lost,
/// to no effect: [`Handle::lost`] says so.
#[derive(Clone)]
pub(crate) struct Handle {
    pub(crate) device: wgpu::Device,
    pub(crate) queue: wgpu::Queue,
    health: Arc<Mutex<Health>>,
}

/// Shared with the device's callbacks.
#[derive(Default)]
struct Health {
    lost: Option<String>,
    /// Who waits for a callback that a lost device may never make.
    #[cfg(target_arch = "wasm32")]
    wakers: Vec<Waker>,
}

fn lock(health: &Mutex<Health>) -> MutexGuard<'_, Health> {
    health.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Notes a failure; the first one stays.
fn fail(health: &Mutex<Health>, reason: String) {
    let mut state = lock(health);
    state.lost.get_or_insert(reason);
    #[cfg(target_arch = "wasm32")]
    {
        let wakers = std::mem::take(&mut state.wakers);
        drop(state);
        wakers.into_iter().for_each(Waker::wake);
    }
}

impl Handle {
    /// Watches the device from now on.
    pub(crate) fn new(device: wgpu::Device, queue: wgpu::Queue) -> Handle {
        let health = Arc::new(Mutex::new(Health::default()));
        let of_loss = health.clone();
        device.set_device_lost_callback(move |reason, message| {
            fail(&of_loss, format!("the device was lost ({reason:?}): {message}"));
        });
        let of_errors = health.clone();
        device.on_uncaptured_error(Arc::new(move |error: wgpu::Error| {
            fail(&of_errors, error.to_string());
        }));
        Handle { device, queue, health }
    }

    /// Why the device takes no more work, if it does not.
    pub(crate) fn lost(&self) -> Option<String> {
        lock(&self.health).lost.clone()
    }

    /// Notes that the device cannot be used any more.
    pub(crate) fn fail(&self, reason: String) {
        fail(&self.health, reason);
    }

    /// Waits until all that was submitted or written is done; an error says why it never
    /// will be.
    pub(crate) async fn idle(&self) -> Result<(), String> {
        let (sender, done) = super::wait::channel(self);
        self.queue.submit([]);
        self.queue.on_submitted_work_done(move || sender.send(()));
        let answered = done.await.is_some();
        match self.lost() {
            Some(reason) => Err(reason),
            None if answered => Ok(()),
            None => Err("the device never answered".to_owned()),
        }
    }

    /// Waits for the work that was submitted, at most `timeout`, and runs the callbacks
    /// that are due.
    #[cfg(not(target_arch = "wasm32"))]
    pub(crate) fn poll(&self, timeout: std::time::Duration) {
        let wait = wgpu::PollType::Wait { submission_index: None, timeout: Some(timeout) };
        // wgpu panics where the wait itself meets a lost device.
        let polled = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            // A timeout is no error to us.
            let _ = self.device.poll(wait);
        }));
        if polled.is_err() {
            self.fail("the device was lost while it was waited for".to_owned());
        }
    }

    /// Has `waker` woken when the device is lost.
    #[cfg(target_arch = "wasm32")]
    pub(crate) fn wake_when_lost(&self, waker: &Waker) {
        let mut state = lock(&self.health);
        if !state.wakers.iter().any(|w| w.will_wake(waker)) {
            state.wakers.push(waker.clone());
        }
    }
}
