//! Incarnations and their past.

use sheetanchor_core::identity::Incarnation;
use sheetanchor_core::plan::{Aim, Target};
use sheetanchor_core::refusal::Code;
use sheetanchor_core::scn::Scn;
use sheetanchor_core::time::WallMillis;
use sheetanchor_sim::oracle::Violation;
use sheetanchor_sim::world::Failure;

use super::point::named_point;
use crate::stage::Stage;
use crate::workload::Load;

/// One backup, and two restores after which nobody takes another: the WAL of each incarnation is read up to where the
/// next branched off, and on from there.
pub fn needs_no_new_backup(stage: &mut Stage) -> Result<(), Failure> {
    stage.given_a_cluster(Load::SPREAD)?;
    stage.transfers_begin();
    stage.meanwhile(200, 500)?;
    let sealed = stage.a_backup_is_taken()?;
    stage.meanwhile(50, 300)?;
    for (opens, name) in [(2, "in-the-first"), (3, "in-the-second"), (4, "in-the-third")] {
        let point = stage.a_point_is_taken(name)?;
        // Work goes on beyond the point, and is archived: it is on another branch from now on.
        stage.meanwhile(100, 400)?;
        stage.the_point_becomes_reachable(name)?;
        stage.transfers_end()?;
        stage.everything_is_lost()?;
        let restored = stage.is_restored(named_point(name))?;
        let plan = &restored.plan;
        let spans = plan.threads.values().map(|thread| thread.spans.len()).max();
        let good = plan.opens == Incarnation::new(opens)
            && plan.backup == sealed.operation
            && plan.cut == point.cut
            && spans == usize::try_from(opens - 1).ok();
        let detail = format!("{spans:?} spans, {plan:?}");
        stage.holds(good, Violation::new("a backup serves the incarnations after it", detail))?;
        stage.history_goes_on();
        stage.transfers_begin();
        stage.meanwhile(100, 300)?;
    }
    stage.commits_flow_again_within_the_lease()?;
    stage.transfers_end()
}

/// 1 is left at an early point for 2; then 1 is restored at a late point, which opens 3; then 2, which opens 4. What
/// lies on another branch is refused unless its incarnation is named.
pub fn is_opened_again_from_its_past(stage: &mut Stage) -> Result<(), Failure> {
    stage.given_a_cluster(Load::SPREAD)?;
    stage.transfers_begin();
    stage.meanwhile(200, 500)?;
    stage.a_backup_is_taken()?;
    stage.meanwhile(50, 300)?;
    let early = stage.a_point_is_taken("early")?;
    stage.meanwhile(100, 400)?;
    let late = stage.a_point_is_taken("late")?;
    stage.meanwhile(50, 200)?;
    stage.the_point_becomes_reachable("late")?;
    stage.transfers_end()?;
    let first = stage.history();

    stage.everything_is_lost()?;
    stage.is_restored(named_point("early"))?;
    stage.history_goes_on();
    stage.transfers_begin();
    stage.meanwhile(200, 500)?;
    let second_point = stage.a_point_is_taken("second")?;
    stage.meanwhile(50, 200)?;
    stage.the_point_becomes_reachable("second")?;
    stage.transfers_end()?;
    let second = stage.history();

    for (what, target, code) in [
        ("a point beyond the branch", named_point("late"), Code::OtherBranch),
        ("an SCN beyond the branch", Target::Scn(late.cut.scn), Code::BetweenIncarnations),
        ("an SCN right beyond the branch", Target::Scn(early.cut.scn.next()), Code::BetweenIncarnations),
    ] {
        let refused = stage.begin_plan(target);
        stage.is_refused(what, &refused, &[code])?;
    }
    let never = stage.begin_plan(Aim::from(Target::Latest).of_incarnation(Incarnation::new(9)));
    stage.is_refused("an incarnation that never was", &never, &[Code::NoSuchTarget])?;

    stage.everything_is_lost()?;
    stage.history_is(first);
    let third = stage.is_restored(Aim::from(named_point("late")).of_incarnation(Incarnation::new(1)))?;
    stage.history_goes_on();
    stage.transfers_begin();
    stage.meanwhile(100, 300)?;
    stage.transfers_end()?;
    stage.everything_is_lost()?;
    stage.history_is(second);
    let fourth = stage.is_restored(Aim::from(named_point("second")).of_incarnation(Incarnation::new(2)))?;
    let seen = [&third, &fourth]
        .map(|restored| (restored.plan.incarnation.get(), restored.plan.opens.get(), restored.plan.cut.scn));
    let wanted = [(1, 3, late.cut.scn), (2, 4, second_point.cut.scn)];
    stage.holds(seen == wanted, Violation::new("a branch is opened where it was asked for", format!("{seen:?}")))
}

/// Between restore points, too: the SCN of any commit, inclusive and exclusive, and a moment of wall time.
pub fn reaches_any_archived_scn(stage: &mut Stage) -> Result<(), Failure> {
    stage.given_a_cluster(Load::SPREAD)?;
    stage.transfers_begin();
    stage.meanwhile(200, 500)?;
    let sealed = stage.a_backup_is_taken()?;
    stage.meanwhile(300, 700)?;
    stage.transfers_end()?;
    let done = stage.history().acknowledged_scns();
    // The tail may not be archived: nothing on an idle thread shows that nothing can follow.
    let after: Vec<Scn> = done.iter().copied().filter(|scn| *scn > sealed.seal.cut.scn).collect();
    let drawn = usize::try_from(stage.chance().between(1, 50)).unwrap_or(1) * after.len() / 100;
    let Some(scn) = after.get(drawn).copied() else {
        return stage.holds(false, Violation::new("commits follow the backup", format!("{done:?}")));
    };
    stage.meanwhile(500, 700)?;
    let (target, reached) = match stage.chance().below(3) {
        0 => (Target::Scn(scn), scn),
        1 => (Target::Below(scn), Scn::new(scn.get() - 1)),
        _ => {
            let last = Scn::at(WallMillis::new(scn.millis())).get() | 0xFFFF;
            (Target::Time(WallMillis::new(scn.millis())), Scn::new(last))
        }
    };
    let end = stage.begin_plan(Target::Scn(Scn::at(WallMillis::new(scn.millis() + 3_600_000))));
    stage.is_refused("an SCN after the archive's end", &end, &[Code::NotReachable])?;
    let early = stage.begin_plan(Target::Scn(Scn::new(sealed.seal.cut.scn.get() - 1)));
    stage.is_refused("an SCN before the first backup's cut", &early, &[Code::NoBackup])?;
    let very = stage.begin_plan(Target::Scn(sealed.seal.cut.scn));
    stage.succeeds("the very SCN of the backup's cut is a target", &very)?;

    stage.everything_is_lost()?;
    let restored = stage.is_restored_by_scn(target)?;
    let plan = &restored.plan;
    let good = plan.cut.scn == reached && plan.resolved.sought;
    let detail = format!("asked for {}, which is {reached}; restored to {:?}", plan.target, plan.cut);
    stage.holds(good, Violation::new("a target is never rounded", detail))?;
    stage.history_goes_on();
    stage.transfers_begin();
    stage.meanwhile(100, 300)?;
    let point = stage.a_point_is_taken("after")?;
    stage.the_point_becomes_reachable("after")?;
    stage.transfers_end()?;
    stage.everything_is_lost()?;
    let again = stage.is_restored(named_point("after"))?;
    stage.holds(
        again.plan.cut == point.cut && again.plan.backup == sealed.operation,
        Violation::new("the branch is where the nodes proved it", format!("{:?}", again.plan)),
    )
}
