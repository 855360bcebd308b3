//! How fast a backup reads.

use sheetanchor_core::format::catalog::Method;
use sheetanchor_core::identity::ByteCount;
use sheetanchor_core::plan::Target;
use sheetanchor_core::throttle::Rate;
use sheetanchor_sim::oracle::Violation;
use sheetanchor_sim::world::Failure;

use crate::stage::Stage;
use crate::workload::Load;

/// A backup that was given a rate reads no faster, and not much slower, while clients go on; it is restored as any other.
pub fn is_kept_by_a_backup(stage: &mut Stage) -> Result<(), Failure> {
    let bytes_per_second = stage.chance().between(100_000, 200_000);
    let rate = Rate::new(bytes_per_second);
    stage.given_a_cluster(Load::SPREAD)?;
    stage.transfers_begin();
    stage.meanwhile(200, 500)?;
    let backup = stage.operate(move |operator| async move { operator.at_rate(rate).backup(None, Method::Fence).await });
    let begun = stage.world().elapsed();
    let sealed = stage.succeeds("a backup at a rate", &backup)?;
    let took = stage.world().elapsed().saturating_sub(begun);
    stage.transfers_end()?;
    let read: u64 = sealed.manifest.units.values().map(|unit| unit.bytes.get()).sum();
    let least = rate.map(|rate| rate.time_for(ByteCount::new(read))).unwrap_or_default();
    let detail = format!("{read} bytes at {bytes_per_second} bytes/s took {took:?}");
    let good = !least.is_zero() && took >= least && took < least * 3;
    stage.holds(good, Violation::new("a backup keeps its rate", detail))?;
    stage.everything_is_lost()?;
    stage.is_restored(Target::Backup(sealed.operation)).map(|_| ())
}
