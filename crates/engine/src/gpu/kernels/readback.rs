//! Reads a whole buffer back, for tests.

use std::future::poll_fn;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Poll, Waker};

#[derive(Default)]
struct State {
    result: Option<Result<(), wgpu::BufferAsyncError>>,
    waker: Option<Waker>,
}

/// The words of a buffer after all that was submitted. Natively it polls the device, in a
/// browser the event loop answers.
///
/// # Errors
/// If the device fails.
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
    device.poll(wgpu::PollType::wait_indefinitely()).map_err(|e| e.to_string())?;
    poll_fn(|context| {
        let mut result = None;
        lock(&state, &mut |state| {
            result = state.result.take();
            state.waker = Some(context.waker().clone());
        });
        result.map_or(Poll::Pending, Poll::Ready)
    })
    .await
    .map_err(|e| e.to_string())?;
    let view = target.slice(..).get_mapped_range().map_err(|e| e.to_string())?;
    let (words, _) = view.as_chunks::<4>();
    Ok(words.iter().map(|&word| u32::from_le_bytes(word)).collect())
}
