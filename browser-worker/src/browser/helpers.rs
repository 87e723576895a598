//! Helpers of the tab's worker: Web Workers of the same code that share a shard's rows.

use std::cell::RefCell;
use std::future::Future;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use engine::Shard;
use engine::crew::slot::ChiefSlot;
use engine::crew::{Crew, HELPERS_MAX};
use js_sys::Array;
use wasm_bindgen::prelude::*;
use web_sys::{ErrorEvent, MessageEvent, Worker, WorkerOptions, WorkerType};

use super::helper::{MODULE, QUERY, Say};
use super::js;
use super::slot::SharedBytes;

/// Helpers of one tab at a time: of all its shards, of which it has two while one replaces
/// another.
const HELPERS_ALL_MAX: usize = 2 * HELPERS_MAX;
/// Helpers that do not hold their shares after so long are done without, ms.
const HIRE_MS_MAX: f64 = 60_000.0;
/// Weights on their way to helpers at a time, bytes; or those of one product.
const SENT_BYTES_MAX: usize = 8 << 20;
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
    /// Why it broke, in words.
    problem: Rc<RefCell<Option<String>>>,
    /// It broke.
    broke: Arc<AtomicBool>,
    /// It has computed something.
    helped: Arc<AtomicBool>,
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
        let problem: Rc<RefCell<Option<String>>> = Rc::default();
        let (broke, helped) = (Arc::new(AtomicBool::new(false)), Arc::default());
        let breaks = {
            let (problem, broke) = (problem.clone(), broke.clone());
            move |reason: String| {
                js::warn(&format!("a helper failed: {reason}"));
                broke.store(true, Ordering::Relaxed);
                problem.borrow_mut().get_or_insert(reason);
            }
        };
        let (hears, fails) = (said.clone(), breaks.clone());
        let listen = [
            Closure::<dyn FnMut(JsValue)>::new(move |event: JsValue| {
                let data = event.unchecked_into::<MessageEvent>().data();
                match data.as_string() {
                    Some(reason) => breaks(reason),
                    None => *hears.borrow_mut() = Some(data),
                }
            }),
            Closure::<dyn FnMut(JsValue)>::new(move |event: JsValue| {
                let event = event.unchecked_into::<ErrorEvent>();
                event.prevent_default();
                // Some errors have no message.
                fails(js::get(&event, "message").as_string().unwrap_or_default());
            }),
        ];
        worker.set_onmessage(Some(listen[0].as_ref().unchecked_ref()));
        worker.set_onerror(Some(listen[1].as_ref().unchecked_ref()));
        let helper = Helper { worker, said, problem, broke, helped, _listen: listen };
        // The same code as here: what is served by now may be another.
        let module = Array::of2(&MODULE.into(), &wasm_bindgen::module());
        helper.worker.post_message(&module).map_err(|error| js::text(&error))?;
        Ok(helper)
    }

    /// Tells it something; what it says then is the answer.
    pub fn tell(&self, say: &Say<'_>) {
        *self.said.borrow_mut() = None;
        let (message, transfer) = say.to_js();
        if let Err(error) = self.worker.post_message_with_transfer(&message, &transfer) {
            self.broke.store(true, Ordering::Relaxed);
            self.problem.borrow_mut().get_or_insert(js::text(&error));
        }
    }

    /// Why it broke, in words.
    pub fn problem(&self) -> Option<String> {
        self.problem.borrow().clone()
    }

    /// Whether it has computed something.
    pub fn has_helped(&self) -> bool {
        self.helped.load(Ordering::Relaxed)
    }

    /// The answer, taken; an error is in words.
    fn answer(&self) -> Result<JsValue, String> {
        match self.problem() {
            Some(reason) => Err(format!("a helper failed: {reason}")),
            None => Ok(self.said.borrow_mut().take().ok_or("a helper does not answer")?),
        }
    }
}

/// Waits until each has said something, for so long.
async fn heard(helpers: &[Helper], ms_max: f64, stop: &dyn Fn() -> bool) {
    let began = js::now_ms();
    let waits = |helper: &Helper| helper.said.borrow().is_none() && helper.problem().is_none();
    let silent = || helpers.iter().any(waits);
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

/// Has all of them measure themselves while `own` does; the sum of all rates. That leaves out
/// what a step does on one core, attention and waiting for each other: a step is slower.
pub async fn measure(
    helpers: &[Helper],
    own: impl Future<Output = Result<[f64; 2], String>>,
    stop: &dyn Fn() -> bool,
) -> Result<[f64; 2], String> {
    helpers.iter().for_each(|helper| helper.tell(&Say::Measure));
    let mut rates = own.await?;
    heard(helpers, ANSWER_MS_MAX, stop).await;
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
    helped: Arc<AtomicBool>,
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

/// Calls what it is given with the shard, if that is at hand at the moment; whether it was.
pub type WithShard<'a> = dyn Fn(&mut dyn FnMut(&Shard)) -> bool + 'a;

/// Starts so many helpers and gives them their shares of a shard, whenever that is at hand.
/// Dropping what is returned ends them.
///
/// # Errors
/// The shard is not shared; why, in words.
pub async fn hire(
    wanted: usize,
    with: &WithShard<'_>,
    stop: &dyn Fn() -> bool,
) -> Result<(Helpers, Vec<Helper>), String> {
    let end = js::now_ms() + HIRE_MS_MAX;
    let stop = &|| stop() || js::now_ms() > end;
    let (helpers, problem) = start(wanted, stop).await;
    if helpers.len() < wanted {
        // Shares are cut for as many as the owner was told.
        return Err(problem.unwrap_or_else(|| "a helper did not start".into()));
    }
    let (mut product, mut products) = (0, 1);
    while product < products {
        let at_hand = with(&mut |shard| {
            products = shard.products();
            let mut sent = 0;
            while product < products && sent < SENT_BYTES_MAX {
                for (place, helper) in helpers.iter().enumerate() {
                    let cut = shard.cut(product, place, helpers.len());
                    helper.tell(&Say::Hold(&cut));
                    sent += cut.matrices.iter().map(|tiles| tiles.bytes.len()).sum::<usize>();
                }
                product += 1;
            }
        });
        if stop() {
            return Err(format!("helpers had {product} of {products} products in the end"));
        }
        if at_hand {
            helpers.iter().for_each(|helper| helper.tell(&Say::Held));
            agreed(&helpers, stop).await?;
        } else {
            js::sleep(LOOK_MS).await;
        }
    }
    helpers.iter().for_each(|helper| helper.tell(&Say::Serve));
    heard(&helpers, ANSWER_MS_MAX, stop).await;
    let members = helpers.iter().map(|helper| {
        let memory = SharedBytes::new(&helper.answer()?).ok_or("a helper without memory")?;
        let (slot, broke) = (ChiefSlot::new(memory), helper.broke.clone());
        Ok(Member { slot, broke, helped: helper.helped.clone(), idle: false, left: 0 })
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
        let Member { slot, helped, .. } = &self.0[helper];
        let answered = slot.answered(begun);
        helped.fetch_or(answered > 0, Ordering::Relaxed);
        answered
    }

    fn copy(&mut self, helper: usize, answers: &mut [u8]) {
        self.0[helper].slot.copy(answers);
    }
}
