//! Many machines: whether a crowd that comes and goes serves what is asked, how evenly its speed is
//! spread over the layers, and what its size costs the scheduler.
//!
//! `WEFT_SIM_CROWD=10,100,1000,10000` sets the sizes (CI runs 10 and 200), `WEFT_SIM_SEED` the
//! seed. `cargo test --release -p tests --test sim crowd -- --nocapture` prints the table.

use crate::fleet::Setting;
use crate::world::{self, World};

/// What is run where nobody says anything else.
const SIZES: &str = "10,200";
/// From this size on the layers must be served evenly: the weakest by this share of the mean.
const EVEN_FROM: u64 = 200;
const EVEN: f64 = 0.5;
/// Of the requests, a tenth is in a hurry; so many at most may end by that or at a bound.
const REFUSED_MAX: f64 = 0.1;
/// The kinds of events that are reported. A tick may place shards.
const KINDS: [&str; 6] = ["join", "leave", "step", "sampled", "route", "tick"];

#[test]
fn a_crowd_comes_and_goes_and_nearly_every_request_is_served() {
    let sizes = std::env::var("WEFT_SIM_CROWD").unwrap_or_else(|_| SIZES.to_owned());
    let seed = std::env::var("WEFT_SIM_SEED").map_or(0, |s| s.parse().expect("a number"));
    println!("seed {seed}; what the scheduler takes for an event, µs: median (99th percentile)");
    print!("{:>8} {:>8} {:>8} {:>10}", "machines", "served", "refused", "min/mean T");
    KINDS.iter().for_each(|kind| print!(" {kind:>16}"));
    println!();
    for size in sizes.split(',').map(|s| s.trim().parse::<u64>().expect("sizes")) {
        println!("again: WEFT_SIM_CROWD={size} WEFT_SIM_SEED={seed}");
        let mut world = world::run(seed, Setting::crowd(size));
        report(size, &mut world);
    }
}

fn report(size: u64, world: &mut World) {
    let rates = world.scheduler.layer_rates("fake");
    let mean = rates.iter().sum::<u64>() as f64 / rates.len() as f64;
    let balance = *rates.iter().min().expect("a model has layers") as f64 / mean;
    let (served, refused) = (world.clients.served, world.clients.refused);
    print!("{size:>8} {served:>8} {refused:>8} {balance:>10.2}");
    for kind in KINDS {
        let times = world.took_us.entry(kind).or_default();
        times.sort_by(f64::total_cmp);
        let at = |share: usize| times.get(times.len() * share / 100).copied().unwrap_or(0.0);
        print!(" {:>16}", format!("{:.1} ({:.0})", at(50), at(99)));
    }
    println!();
    // The run itself fails at a request that nothing ends, or that is refused without need.
    assert!(refused as f64 <= REFUSED_MAX * (served + refused) as f64, "{refused} were refused");
    assert!(size < EVEN_FROM || balance > EVEN, "layers are served unevenly: {balance:.2}");
}
