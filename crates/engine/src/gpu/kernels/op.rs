//! What is recorded into a pass: dispatches with everything but the step's own numbers fixed.

use super::step::StepShape;
use super::types::Rows;

/// A number of workgroups along one axis.
#[derive(Clone, Copy, Debug)]
pub(super) enum Groups {
    /// So many.
    Fixed(u32),
    /// One per so many rows.
    PerRows(Rows, u32),
    /// One per so many keys of the longest session.
    PerKeys(u32),
}

impl Groups {
    fn count(self, shape: &StepShape) -> u32 {
        match self {
            Groups::Fixed(n) => n,
            Groups::PerRows(rows, each) => rows.count(shape).div_ceil(each),
            Groups::PerKeys(each) => shape.keys_max.div_ceil(each),
        }
    }
}

impl Rows {
    /// How many there are.
    pub(super) fn count(self, shape: &StepShape) -> u32 {
        match self {
            Rows::All => shape.rows,
            Rows::Kept => shape.kept_rows,
        }
    }
}

/// One dispatch.
#[derive(Clone, Debug)]
pub(super) struct Dispatch {
    pub(super) pipeline: wgpu::ComputePipeline,
    pub(super) bind_group: wgpu::BindGroup,
    pub(super) grid: [Groups; 3],
}

/// One way to compute an op, for steps up to some shape.
#[derive(Clone, Debug)]
pub(super) struct Way {
    pub(super) rows_max: u32,
    pub(super) keys_max: u32,
    pub(super) dispatches: Vec<Dispatch>,
}

/// An op of a plan, ready to be recorded for any step.
#[derive(Clone, Debug)]
pub struct Op {
    pub(super) rows: Rows,
    /// The first that a step fits is taken; the last fits all.
    pub(super) ways: Vec<Way>,
}

impl Op {
    fn way(&self, shape: &StepShape) -> &[Dispatch] {
        let rows = self.rows.count(shape);
        if rows == 0 {
            return &[];
        }
        self.ways
            .iter()
            .find(|way| rows <= way.rows_max && shape.keys_max <= way.keys_max)
            .map_or(&[], |way| &way.dispatches)
    }

    /// Records it: the step buffer holds the step of that shape when the pass runs. Nothing
    /// is recorded where it has no rows.
    pub fn record(&self, pass: &mut wgpu::ComputePass<'_>, shape: &StepShape) {
        for dispatch in self.way(shape) {
            let [x, y, z] = dispatch.grid.map(|groups| groups.count(shape));
            pass.set_pipeline(&dispatch.pipeline);
            pass.set_bind_group(0, &dispatch.bind_group, &[]);
            pass.dispatch_workgroups(x, y, z);
        }
    }

    /// How many dispatches that is.
    pub fn dispatches(&self, shape: &StepShape) -> u32 {
        self.way(shape).len() as u32
    }
}
