//! The KV cache: pages of 64 positions, refcounted, copied on write.
//!
//! A page holds 64 positions of every layer of the shard:
//! `[layer][kv head]{ K [hd][64], V [64][hd] }`. K is transposed so that keys are SIMD
//! lanes when scores are computed. Pages are allocated when first needed, at most
//! `pages_max`, zeroed once, and reused.

use litemap::LiteMap;
use numerics::PAGE_POSITIONS;

use crate::cpu::Element;
use crate::types::{Segment, StepError};

/// Shape of a page.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PageShape {
    pub(crate) layers: usize,
    pub(crate) kv_heads: usize,
    pub(crate) head_dim: usize,
}

impl PageShape {
    /// Elements of one head's K, and of its V.
    pub(crate) fn head_len(self) -> usize {
        PAGE_POSITIONS * self.head_dim
    }

    /// Elements of a page.
    pub(crate) fn len(self) -> usize {
        self.layers * self.kv_heads * 2 * self.head_len()
    }

    /// Start of the K of a head; its V follows.
    pub(crate) fn head_start(self, layer: usize, kv_head: usize) -> usize {
        (layer * self.kv_heads + kv_head) * 2 * self.head_len()
    }
}

#[derive(Default)]
struct Session {
    pages: Vec<u32>,
    positions: u32,
}

/// Which pages each session holds, wherever the pages are: refcounts, forks, copies due.
pub(crate) struct PageTable {
    pages_max: u32,
    refs: Vec<u32>,
    free: Vec<u32>,
    sessions: LiteMap<u64, Session>,
}

/// A shared page that must be copied, all of it, before the step writes to the copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PageCopy {
    pub(crate) from: u32,
    pub(crate) to: u32,
}

fn pages_for(positions: u32) -> usize {
    (positions as usize).div_ceil(PAGE_POSITIONS)
}

impl PageTable {
    pub(crate) fn new(pages_max: u32) -> PageTable {
        let (refs, free) = (Vec::new(), Vec::new());
        PageTable { pages_max, refs, free, sessions: LiteMap::new() }
    }

    /// Pages that were ever taken: their numbers are below it.
    pub(crate) fn pages_made(&self) -> usize {
        self.refs.len()
    }

    pub(crate) fn pages_free(&self) -> u32 {
        self.pages_max - (self.refs.len() - self.free.len()) as u32
    }

    pub(crate) fn positions(&self, session: u64) -> u32 {
        self.sessions.get(&session).map_or(0, |s| s.positions)
    }

    /// Keeps the first `positions`; a session without any is forgotten.
    pub(crate) fn truncate(&mut self, session: u64, positions: u32) {
        let Some(held) = self.sessions.get_mut(&session) else { return };
        held.positions = held.positions.min(positions);
        let kept = pages_for(held.positions).min(held.pages.len());
        let dropped = held.pages.split_off(kept);
        if held.positions == 0 {
            self.sessions.remove(&session);
        }
        for page in dropped {
            self.unref(page);
        }
    }

    fn unref(&mut self, page: u32) {
        let refs = &mut self.refs[page as usize];
        *refs -= 1;
        if *refs == 0 {
            self.free.push(page);
        }
    }

    pub(crate) fn fork(&mut self, from: u64, to: u64, positions: u32) -> Result<(), StepError> {
        let held = self.positions(from);
        if positions > held {
            return Err(StepError::Gap { session: from, position: positions, held });
        }
        if from == to {
            self.truncate(to, positions);
            return Ok(());
        }
        self.truncate(to, 0);
        if positions > 0 {
            let pages = self.sessions[&from].pages[..pages_for(positions)].to_vec();
            for &page in &pages {
                self.refs[page as usize] += 1;
            }
            self.sessions.insert(to, Session { pages, positions });
        }
        Ok(())
    }

    /// Makes room for every segment's rows: drops what lies beyond its position, then
    /// checks that all fit, and only then takes pages. The copies that it returns are due
    /// before anything is written.
    pub(crate) fn reserve(&mut self, segments: &[Segment]) -> Result<Vec<PageCopy>, StepError> {
        for s in segments {
            let held = self.positions(s.session);
            if s.position > held {
                return Err(StepError::Gap { session: s.session, position: s.position, held });
            }
        }
        for s in segments {
            self.truncate(s.session, s.position);
        }
        self.check_room(segments)?;
        let mut copies = Vec::new();
        for s in segments {
            let mut pages = self.sessions.remove(&s.session).unwrap_or_default().pages;
            if let Some(last) = pages.last_mut()
                && !(s.position as usize).is_multiple_of(PAGE_POSITIONS)
                && self.refs[*last as usize] > 1
            {
                let copy = PageCopy { from: *last, to: self.take_page() };
                self.refs[copy.from as usize] -= 1;
                *last = copy.to;
                copies.push(copy);
            }
            while pages.len() < pages_for(s.position + s.rows) {
                pages.push(self.take_page());
            }
            self.sessions.insert(s.session, Session { pages, positions: s.position });
        }
        Ok(copies)
    }

    fn check_room(&self, segments: &[Segment]) -> Result<(), StepError> {
        let mut pages_free = self.pages_free();
        // Two sharers in one step: once the first has its copy, the last keeps the page.
        let mut copies: LiteMap<u32, u32> = LiteMap::new();
        for s in segments {
            let held = self.sessions.get(&s.session);
            let pages = held.map_or(&[][..], |h| &h.pages[..]);
            let mut pages_needed = (pages_for(s.position + s.rows) - pages.len()) as u32;
            if let Some(&last) = pages.last()
                && !(s.position as usize).is_multiple_of(PAGE_POSITIONS)
            {
                let copied = copies.entry(last).or_default();
                if self.refs[last as usize] - *copied > 1 {
                    *copied += 1;
                    pages_needed += 1;
                }
            }
            if pages_needed > pages_free {
                return Err(StepError::KvFull { session: s.session, pages_needed, pages_free });
            }
            pages_free -= pages_needed;
        }
        Ok(())
    }

    fn take_page(&mut self) -> u32 {
        let page = self.free.pop().unwrap_or_else(|| {
            assert!(self.refs.len() < self.pages_max as usize, "room was checked before");
            self.refs.push(0);
            (self.refs.len() - 1) as u32
        });
        self.refs[page as usize] = 1;
        page
    }

    /// After a step: the session now holds this many positions.
    pub(crate) fn commit(&mut self, session: u64, positions: u32) {
        let held = self.sessions.get_mut(&session).expect("reserved before the step");
        assert!(held.pages.len() == pages_for(positions), "pages were reserved for the step");
        held.positions = positions;
    }

    /// The pages of a reserved session, in the order of its positions.
    pub(crate) fn pages(&self, session: u64) -> &[u32] {
        &self.sessions[&session].pages
    }

    /// A page of a reserved session that its rows will be written to.
    fn own_page(&self, session: u64, index: usize) -> usize {
        let page = self.sessions[&session].pages[index] as usize;
        assert_eq!(self.refs[page], 1, "a shared page is copied before it is written");
        page
    }
}

/// Pages and sessions of one CPU shard.
pub(crate) struct Kv<E> {
    shape: PageShape,
    table: PageTable,
    pages: Vec<Box<[E]>>,
}

impl<E: Element> Kv<E> {
    pub(crate) fn new(shape: PageShape, pages_max: u32) -> Kv<E> {
        Kv { shape, table: PageTable::new(pages_max), pages: Vec::new() }
    }

    pub(crate) fn shape(&self) -> PageShape {
        self.shape
    }

    pub(crate) fn pages_free(&self) -> u32 {
        self.table.pages_free()
    }

    pub(crate) fn positions(&self, session: u64) -> u32 {
        self.table.positions(session)
    }

    /// See [`PageTable::truncate`].
    pub(crate) fn truncate(&mut self, session: u64, positions: u32) {
        self.table.truncate(session, positions);
    }

    pub(crate) fn fork(&mut self, from: u64, to: u64, positions: u32) -> Result<(), StepError> {
        self.table.fork(from, to, positions)
    }

    /// [`PageTable::reserve`], and the copies that it asks for.
    pub(crate) fn reserve(&mut self, segments: &[Segment]) -> Result<(), StepError> {
        let copies = self.table.reserve(segments)?;
        let page = || vec![E::default(); self.shape.len()].into_boxed_slice();
        self.pages.resize_with(self.table.pages_made(), page);
        for PageCopy { from, to } in copies {
            let [to, from] = self
                .pages
                .get_disjoint_mut([to as usize, from as usize])
                .expect("a page just taken is not the shared one");
            to.copy_from_slice(from);
        }
        Ok(())
    }

    /// See [`PageTable::commit`].
    pub(crate) fn commit(&mut self, session: u64, positions: u32) {
        self.table.commit(session, positions);
    }

    /// A reserved session's page that holds `position`.
    pub(crate) fn page(&self, session: u64, index: usize) -> &[E] {
        &self.pages[self.table.pages(session)[index] as usize]
    }

    /// The same, to append to. It must be the session's own: see [`Kv::reserve`].
    pub(crate) fn page_mut(&mut self, session: u64, index: usize) -> &mut [E] {
        &mut self.pages[self.table.own_page(session, index)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHAPE: PageShape = PageShape { layers: 1, kv_heads: 1, head_dim: 2 };

    fn segment(session: u64, position: u32, rows: u32) -> Segment {
        Segment { session, position, rows, logits_rows: 0 }
    }

    fn append(kv: &mut Kv<f32>, segments: &[Segment]) -> Result<(), StepError> {
        kv.reserve(segments)?;
        for s in segments {
            for position in s.position..s.position + s.rows {
                let (page, slot) = (position as usize / 64, position as usize % 64);
                kv.page_mut(s.session, page)[slot] = (s.session * 1000) as f32 + position as f32;
            }
            kv.commit(s.session, s.position + s.rows);
        }
        Ok(())
    }

    fn contents(kv: &Kv<f32>, session: u64) -> Vec<f32> {
        (0..kv.positions(session) as usize).map(|p| kv.page(session, p / 64)[p % 64]).collect()
    }

    #[test]
    fn forks_share_pages_until_one_writes() {
        let mut kv = Kv::new(SHAPE, 4);
        append(&mut kv, &[segment(1, 0, 100)]).unwrap();
        assert_eq!(kv.pages_free(), 2);
        kv.fork(1, 2, 70).unwrap();
        assert_eq!((kv.pages_free(), kv.positions(2)), (2, 70));
        let before = contents(&kv, 1);
        append(&mut kv, &[segment(2, 70, 10)]).unwrap();
        assert_eq!(kv.pages_free(), 1, "one page copied, the full one still shared");
        assert_eq!(contents(&kv, 1), before);
        assert_eq!(contents(&kv, 2)[..70], before[..70]);
        assert_eq!(contents(&kv, 2)[70], 2070.0);
        kv.truncate(1, 0);
        assert_eq!(kv.pages_free(), 2);
        assert_eq!(contents(&kv, 2)[..70], before[..70]);
        kv.truncate(2, 0);
        assert_eq!(kv.pages_free(), 4);
        kv.truncate(2, 0);
    }

    #[test]
    fn a_full_cache_changes_nothing_else() {
        let mut kv = Kv::new(SHAPE, 2);
        append(&mut kv, &[segment(1, 0, 64)]).unwrap();
        let full = append(&mut kv, &[segment(1, 64, 1), segment(2, 0, 1)]);
        assert_eq!(full, Err(StepError::KvFull { session: 2, pages_needed: 1, pages_free: 0 }));
        assert_eq!((kv.positions(1), kv.positions(2), kv.pages_free()), (64, 0, 1));
        append(&mut kv, &[segment(1, 64, 1)]).unwrap();
        assert_eq!(kv.pages_free(), 0);
    }

    #[test]
    fn the_last_sharer_needs_no_copy() {
        let mut kv = Kv::new(SHAPE, 3);
        append(&mut kv, &[segment(1, 0, 10)]).unwrap();
        kv.fork(1, 2, 10).unwrap();
        kv.fork(1, 3, 10).unwrap();
        append(&mut kv, &[segment(1, 10, 1), segment(2, 10, 1), segment(3, 10, 1)]).unwrap();
        assert_eq!(kv.pages_free(), 0);
        assert_eq!(contents(&kv, 3)[9..], [1009.0, 3010.0]);
        assert_eq!(contents(&kv, 2)[9..], [1009.0, 2010.0]);
    }

    #[test]
    fn gaps_are_refused_and_rewinds_drop_what_follows() {
        let mut kv = Kv::new(SHAPE, 4);
        append(&mut kv, &[segment(1, 0, 130)]).unwrap();
        let gap = kv.reserve(&[segment(1, 131, 1)]);
        assert_eq!(gap, Err(StepError::Gap { session: 1, position: 131, held: 130 }));
        assert_eq!(kv.positions(1), 130);
        append(&mut kv, &[segment(1, 64, 1)]).unwrap();
        assert_eq!((kv.positions(1), kv.pages_free()), (65, 2));
        kv.truncate(1, 1000);
        assert_eq!(kv.positions(1), 65);
        assert_eq!(kv.fork(1, 5, 66), Err(StepError::Gap { session: 1, position: 66, held: 65 }));
        kv.fork(1, 1, 3).unwrap();
        assert_eq!((kv.positions(1), kv.pages_free()), (3, 3));
    }
}
