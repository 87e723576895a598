//! Helpers of the tab's worker: Web Workers of the same code that share a shard's rows.

use std::cell::RefCell;
use std::future::Future;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use engine::Class;
use engine::crew::Crew;
use engine::crew::slot::ChiefSlot;
use js_sys::{Array, Map, Uint8Array};
use model::Manifest;
use protocol::Assignment;
use shards::Source;
use wasm_bindgen::prelude::*;
use web_sys::{ErrorEvent, MessageEvent, Worker, WorkerOptions, WorkerType};

use super::helper::{QUERY, Say};
use super::js;
use super::slot::{SharedBytes, shared};

/// Helpers of one tab at a time: of all its shards, of which it has two while one replaces
/// another.
const HELPERS_ALL_MAX: usize = 16;
/// Helpers that have not loaded their code after so long are done without, ms.
const START_MS_MAX: f64 = 5000.0;
/// The same for an answer, ms.
const ANSWER_MS_MAX: f64 = 10_000.0;
/// Between two looks at whether there is an answer, ms.
const LOOK_MS: f64 = 10.0;

/// Helpers that there are.
static HELPERS: AtomicUsize = AtomicUsize::new(0);

/// A helper that answers what it is told; it ends when this is dropped.
pub struct Helper {
    worker: Worker,
    /// What it said last.
    said: Rc<RefCell<Option<JsValue>>>,
    /// It broke.
    broke: Arc<AtomicBool>,
    _listen: [Closure<dyn FnMut(JsValue)>; 2],
}

impl Drop for Helper {
    fn drop(&mut self) {
        self.worker.set_onmessage(None);
        self.worker.set_onerror(None);
        self.worker.terminate();
        HELPERS.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Helper {
    fn new() -> Result<Helper, String> {
        if HELPERS.load(Ordering::Relaxed) >= HELPERS_ALL_MAX {
            return Err(format!("there are {HELPERS_ALL_MAX} helpers already"));
        }
        let options = WorkerOptions::new();
        options.set_type(WorkerType::Module);
        let here = js::scope().location();
        let asked = here.search();
        let sign = if asked.is_empty() { "?" } else { "&" };
        let address = format!("{}{asked}{sign}{QUERY}", here.pathname());
        let worker = Worker::new_with_options(&address, &options).map_err(|e| js::text(&e))?;
        HELPERS.fetch_add(1, Ordering::Relaxed);
        let said: Rc<RefCell<Option<JsValue>>> = Rc::default();
        let (hears, fails) = (said.clone(), said.clone());
        let broke = Arc::new(AtomicBool::new(false));
        let breaks = broke.clone();
        let listen = [
            Closure::<dyn FnMut(JsValue)>::new(move |event: JsValue| {
                *hears.borrow_mut() = Some(event.unchecked_into::<MessageEvent>().data());
            }),
            Closure::<dyn FnMut(JsValue)>::new(move |event: JsValue| {
                let event = event.unchecked_into::<ErrorEvent>();
                event.prevent_default();
                // Some errors have no message.
                let reason = js::get(&event, "message").as_string().unwrap_or_default();
                let reason = format!("a helper failed: {reason}");
                js::warn(&reason);
                breaks.store(true, Ordering::Relaxed);
                *fails.borrow_mut() = Some(reason.into());
            }),
        ];
        worker.set_onmessage(Some(listen[0].as_ref().unchecked_ref()));
        worker.set_onerror(Some(listen[1].as_ref().unchecked_ref()));
        Ok(Helper { worker, said, broke, _listen: listen })
    }

    /// Tells it something; what it says then is the answer.
    pub fn tell(&self, say: &Say) {
        *self.said.borrow_mut() = None;
        if let Err(error) = self.worker.post_message(&say.to_js()) {
            *self.said.borrow_mut() = Some(js::text(&error).into());
        }
    }

    /// The answer, taken; an error is in words.
    fn answer(&self) -> Result<JsValue, String> {
        let said = self.said.borrow_mut().take().ok_or("a helper does not answer")?;
        said.as_string().map_or(Ok(said), Err)
    }
}

/// Waits until each has said something, for so long.
async fn heard(helpers: &[Helper], ms_max: f64, stop: &dyn Fn() -> bool) {
    let began = js::now_ms();
    let silent = || helpers.iter().any(|helper| helper.said.borrow().is_none());
    while silent() && !stop() && js::now_ms() - began < ms_max {
        js::sleep(LOOK_MS).await;
    }
}

/// Starts so many helpers; fewer, and why, if some do not start.
pub async fn start(wanted: usize, stop: &dyn Fn() -> bool) -> (Vec<Helper>, Option<String>) {
    let (mut helpers, mut problem) = (Vec::new(), None);
    for _ in 0..wanted {
        match Helper::new() {
            Ok(helper) => helpers.push(helper),
            Err(reason) => problem = Some(reason),
        }
    }
    heard(&helpers, START_MS_MAX, stop).await;
    helpers.retain(|helper| match helper.answer() {
        Ok(_) => true,
        Err(reason) => {
            problem = Some(reason);
            false
        }
    });
    (helpers, problem)
}

/// Has all of them measure themselves while `own` does; the sum of all rates.
pub async fn measure(
    helpers: &[Helper],
    own: impl Future<Output = Result<[f64; 2], String>>,
) -> Result<[f64; 2], String> {
    helpers.iter().for_each(|helper| helper.tell(&Say::Measure));
    let mut rates = own.await?;
    heard(helpers, ANSWER_MS_MAX, &|| false).await;
    for helper in helpers {
        let theirs: Array = helper.answer()?.unchecked_into();
        for (at, rate) in rates.iter_mut().enumerate() {
            *rate += theirs.get(at as u32).as_f64().unwrap_or_default();
        }
    }
    Ok(rates)
}

/// The slots of helpers that hold their shares.
pub struct Helpers(Vec<Member>);

struct Member {
    slot: ChiefSlot<SharedBytes>,
    broke: Arc<AtomicBool>,
    /// Takes no orders.
    idle: bool,
    /// Of its last order's pieces those that nobody has begun, where it is idle.
    left: usize,
}

impl Drop for Member {
    fn drop(&mut self) {
        // Browsers are slow to end a worker that sleeps in shared memory.
        self.slot.end();
    }
}

/// Starts so many helpers and gives them their shares of what `assignment` holds, a part at a
/// time, so that no more of it than one part is on its way. Dropping what is returned ends them.
///
/// # Errors
/// The shard is not shared; why, in words.
pub async fn hire(
    assignment: &Assignment,
    source: &mut impl Source,
    wanted: usize,
    stop: &dyn Fn() -> bool,
) -> Result<(Helpers, Vec<Helper>), String> {
    if assignment.class != Class::Canonical1.name() {
        return Err(format!("class {} is not shared", assignment.class));
    }
    let (helpers, problem) = start(wanted, stop).await;
    if helpers.len() < wanted {
        // Shares are cut for as many as the owner was told.
        return Err(problem.unwrap_or_else(|| "a helper did not start".into()));
    }
    let bytes = source.whole(&assignment.manifest.hash).await.map_err(|e| e.to_string())?;
    let bytes = (*bytes).as_ref();
    let manifest = Manifest::from_bytes(bytes).map_err(|error| error.to_string())?;
    let manifest_bytes = Uint8Array::from(bytes);
    for (place, helper) in helpers.iter().enumerate() {
        helper.tell(&Say::Begin(manifest_bytes.clone(), [place, helpers.len()]));
    }
    agreed(&helpers, stop).await?;
    for index in assignment.span.first..assignment.span.end {
        let part = manifest.parts.get(index as usize).ok_or("the manifest has no such part")?;
        let blobs = Map::new();
        for blob in &part.blobs {
            let bytes = source.whole(&blob.hash).await.map_err(|e| e.to_string())?;
            let bytes = (*bytes).as_ref();
            let copy = shared(bytes.len())?;
            // The buffer may be some bytes longer.
            let copy = Uint8Array::new_with_byte_offset_and_length(&copy, 0, bytes.len() as u32);
            copy.copy_from(bytes);
            blobs.set(&blob.hash.as_str().into(), &copy);
        }
        helpers.iter().for_each(|helper| helper.tell(&Say::Part(index, blobs.clone())));
        agreed(&helpers, stop).await?;
    }
    helpers.iter().for_each(|helper| helper.tell(&Say::Serve));
    heard(&helpers, ANSWER_MS_MAX, stop).await;
    let members = helpers.iter().map(|helper| {
        let memory = SharedBytes::new(&helper.answer()?).ok_or("a helper without memory")?;
        let (slot, broke) = (ChiefSlot::new(memory), helper.broke.clone());
        Ok(Member { slot, broke, idle: false, left: 0 })
    });
    Ok((Helpers(members.collect::<Result<_, String>>()?), helpers))
}

/// Waits until all have done what they were told.
async fn agreed(helpers: &[Helper], stop: &dyn Fn() -> bool) -> Result<(), String> {
    heard(helpers, ANSWER_MS_MAX, stop).await;
    helpers.iter().try_for_each(|helper| helper.answer().map(drop))
}

impl Crew for Helpers {
    fn helpers(&self) -> usize {
        self.0.len()
    }

    fn begin(&mut self, order: &[u8], pieces: &[usize]) {
        for (member, &pieces) in self.0.iter_mut().zip(pieces) {
            member.left = pieces;
            member.idle |= member.broke.load(Ordering::Relaxed);
            if !member.idle && !member.slot.order(order, pieces) {
                js::warn("an order is too long for a helper: it takes no more");
                member.idle = true;
            }
        }
    }

    fn take(&mut self, helper: usize) -> bool {
        let member = &mut self.0[helper];
        if member.idle {
            let more = member.left > 0;
            member.left = member.left.saturating_sub(1);
            return more;
        }
        member.slot.take()
    }

    fn answered(&mut self, helper: usize, begun: usize) -> usize {
        self.0[helper].slot.answered(begun)
    }

    fn copy(&mut self, helper: usize, answers: &mut [u8]) {
        self.0[helper].slot.copy(answers);
    }
}
