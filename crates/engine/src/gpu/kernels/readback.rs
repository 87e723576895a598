//! Reads a whole buffer back, for tests.

use std::future::poll_fn;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Poll, Waker};

/// Longest wait natively; a device that needs longer for a test is of no use.
#[cfg(not(target_arch = "wasm32"))]
const WAIT_MAX: std::time::Duration = std::time::Duration::from_secs(30);

#[derive(Default)]
struct State {
    result: Option<Result<(), wgpu::BufferAsyncError>>,
    waker: Option<Waker>,
}

/// The words of a buffer after all that was submitted. Natively it polls the device, in a
/// browser the event loop answers.
///
/// # Errors
/// If the device fails, or natively does not answer in half a minute.
pub(super) async fn read(
    device: &wgpu::Device,
    queue: &wgpu::Queue,
    buffer: &wgpu::Buffer,
) -> Result<Vec<u32>, String> {
    let target = device.create_buffer(&wgpu::BufferDescriptor {
        label: Some("readback"),
        size: buffer.size(),
        usage: wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST,
        mapped_at_creation: false,
    });
    let mut encoder = device.create_command_encoder(&Default::default());
    encoder.copy_buffer_to_buffer(buffer, 0, &target, 0, buffer.size());
    queue.submit([encoder.finish()]);
    let state = Arc::new(Mutex::new(State::default()));
    let lock = |s: &Mutex<State>, f: &mut dyn FnMut(&mut State)| {
        f(&mut s.lock().unwrap_or_else(PoisonError::into_inner));
    };
    let shared = state.clone();
    target.slice(..).map_async(wgpu::MapMode::Read, move |result| {
        let mut state = shared.lock().unwrap_or_else(PoisonError::into_inner);
        state.result = Some(result);
        if let Some(waker) = state.waker.take() {
            waker.wake();
        }
    });
    #[cfg(not(target_arch = "wasm32"))]
    wait(device)?;
    let mapped = poll_fn(|context| {
        let mut result = None;
        lock(&state, &mut |state| {
            result = state.result.take();
            state.waker = Some(context.waker().clone());
        });
        match result {
            // Natively that was all there is to wait for.
            None if cfg!(target_arch = "wasm32") => Poll::Pending,
            result => Poll::Ready(result),
        }
    })
    .await;
    mapped.ok_or("the device never answered")?.map_err(|e| e.to_string())?;
    let view = target.slice(..).get_mapped_range().map_err(|e| e.to_string())?;
    let (words, _) = view.as_chunks::<4>();
    Ok(words.iter().map(|&word| u32::from_le_bytes(word)).collect())
}

/// Waits for what was submitted and runs the callbacks that are due.
#[cfg(not(target_arch = "wasm32"))]
fn wait(device: &wgpu::Device) -> Result<(), String> {
    let wait = wgpu::PollType::Wait { submission_index: None, timeout: Some(WAIT_MAX) };
    // wgpu panics where the wait itself meets a lost device.
    match std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| device.poll(wait))) {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err("the device was lost while it was waited for".to_owned()),
    }
}
