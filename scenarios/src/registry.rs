//! The list of stories: what each is called, where it is told, and which planted bugs turn it red.

use sheetanchor_core::planted::Bug;

use crate::Scenario;
use crate::stories;

/// Hands the list of all stories, in the order in which they are told, to the macro that is named: for each its name,
/// the same as a function, where it is told, and the bugs that it must see (`cargo xtask mutants` plants each of them).
#[macro_export]
macro_rules! each_story {
    ($macro:ident) => {
        $macro! {
            "a-backup-is-restored-and-read" a_backup_is_restored_and_read: backup::is_restored_and_read, sees [NoFsyncBeforeSeal, NoPin, CutOffByOne, MagicIgnored];
            "a-node-crashes-during-capture" a_node_crashes_during_capture: backup::survives_a_node_that_crashes_during_capture, sees [];
            "the-coordinator-crashes-between-drain-and-cut" the_coordinator_crashes_between_drain_and_cut: point::frees_commits_when_its_coordinator_crashes, sees [];
            "two-nodes-write-the-same-page-across-the-cut" two_nodes_write_the_same_page_across_the_cut: point::cuts_a_page_that_two_nodes_write, sees [CutOffByOne, NodeBeforeScn];
            "a-cut-is-causal-for-sessions-that-carry-nothing" a_cut_is_causal_for_sessions_that_carry_nothing: point::is_causal_for_sessions_that_carry_nothing, sees [NoFence];
            "a-crash-during-restore-is-resumed" a_crash_during_restore_is_resumed: restore::is_resumed_after_a_crash, sees [];
            "anything-crashes-while-operations-run" anything_crashes_while_operations_run: chaos::spares_what_was_proven, sees [AckBeforeFlush];
            "refusals-change-nothing" refusals_change_nothing: refusals::change_nothing, sees [];
            "the-network-stalls-while-operations-run" the_network_stalls_while_operations_run: chaos::waits_out_a_network_that_stalls, sees [];
            "a-restored-cluster-needs-no-new-backup" a_restored_cluster_needs_no_new_backup: lineage::needs_no_new_backup, sees [CutOffByOne];
            "an-incarnations-past-is-opened-again" an_incarnations_past_is_opened_again: lineage::is_opened_again_from_its_past, sees [BranchCutIgnored];
            "any-archived-scn-is-a-target" any_archived_scn_is_a_target: lineage::reaches_any_archived_scn, sees [TargetRounded, CutOffByOne];
            "commits-flow-within-the-lease-whoever-dies" commits_flow_within_the_lease_whoever_dies: operations::free_commits_whoever_dies, sees [LeaseIgnored];
            "a-fence-opens-though-its-session-is-gone" a_fence_opens_though_its_session_is_gone: operations::open_a_fence_whose_session_is_gone, sees [LeaseIgnored];
            "the-catalog-survives-a-crash-of-everything" the_catalog_survives_a_crash_of_everything: catalog::survives_a_crash_of_everything, sees [NoFsyncBeforeSeal];
            "two-backups-keep-a-pin-each" two_backups_keep_a_pin_each: operations::keep_a_pin_each, sees [OnePinSlot];
            "a-failed-point-leaves-a-running-backup-alone" a_failed_point_leaves_a_running_backup_alone: operations::leave_a_backup_alone_when_a_point_fails, sees [AbortTouchesOthers];
            "a-lost-coordinator-leaves-no-fence-and-no-pin" a_lost_coordinator_leaves_no_fence_and_no_pin: operations::leave_nothing_of_a_lost_coordinator, sees [PinNeverExpires];
            "every-request-is-answered" every_request_is_answered: catalog::answers_every_request, sees [RequestUnanswered];
            "two-hundred-points-in-one-run" two_hundred_points_in_one_run: operations::take_two_hundred_points, sees [SixteenOperationsAtMost];
            "points-during-a-long-backup-leave-it-alone" points_during_a_long_backup_leave_it_alone: operations::spare_a_long_backup, sees [OneOperationAtATime];
            "a-coordinator-that-wakes-finds-its-outcome-taken" a_coordinator_that_wakes_finds_its_outcome_taken: operations::find_their_outcome_taken, sees [SealOverAbort];
            "an-older-term-is-refused" an_older_term_is_refused: operations::obey_the_newer_term, sees [StaleEpochAccepted];
            "pins-stay-until-the-outcome-is-decided" pins_stay_until_the_outcome_is_decided: operations::keep_pins_until_the_outcome, sees [UnpinBeforeOutcome];
            "a-piece-shipped-short-is-continued" a_piece_shipped_short_is_continued: catalog::continues_a_piece_that_was_shipped_short, sees [ShortPieceRefused];
            "two-candidates-for-one-name-have-one-winner" two_candidates_for_one_name_have_one_winner: catalog::has_one_winner_for_one_name, sees [NonceUnchecked];
            "a-seal-is-whole-when-power-fails" a_seal_is_whole_when_power_fails: catalog::keeps_a_seal_when_power_fails, sees [NoFsyncBeforeSeal];
            "other-members-are-refused" other_members_are_refused: catalog::refuses_other_members, sees [MembershipUnchecked];
            "expiry-waits-for-a-restore" expiry_waits_for_a_restore: expiry::waits_for_a_restore, sees [ExpiryIgnoresRestores];
            "expiry-waits-for-a-running-backup" expiry_waits_for_a_running_backup: expiry::waits_for_a_backup, sees [ExpiryIgnoresBackups];
            "expiry-may-be-cut-short-anywhere" expiry_may_be_cut_short_anywhere: expiry::may_be_cut_short, sees [ExpiryKeepsFromStop];
            "expiry-goes-by-cuts-and-not-by-clocks" expiry_goes_by_cuts_and_not_by_clocks: expiry::goes_by_cuts, sees [NewestByTheClock];
            "no-commit-waits-for-a-point-by-scn" no_commit_waits_for_a_point_by_scn: scn::holds_no_commit_back, sees [CutOffByOne];
            "a-cut-by-scn-is-causal-for-sessions-that-carry-it" a_cut_by_scn_is_causal_for_sessions_that_carry_it: scn::is_causal_for_sessions_that_carry_it, sees [ScnNotObserved];
            "nothing-is-stamped-below-a-published-cut" nothing_is_stamped_below_a_published_cut: scn::is_never_stamped_below_again, sees [CeilingIgnored, BarrierUnflushed];
            "an-idle-thread-does-not-hold-the-archive-back" an_idle_thread_does_not_hold_the_archive_back: scn::reaches_on_past_an_idle_thread, sees [IdleWithoutBarrier];
            "a-page-that-moves-between-two-cuts-is-in-both-or-neither" a_page_that_moves_between_two_cuts_is_in_both_or_neither: fence::cuts_between_moving_pages, sees [CutByLsn];
            "no-other-io-happens-under-the-fence" no_other_io_happens_under_the_fence: fence::waits_for_no_other_io, sees [ArchiveUnderFence];
            "a-point-is-void-without-its-record" a_point_is_void_without_its_record: fence::is_void_without_its_record, sees [FlushNotAwaited];
            "no-page-goes-on-from-a-change-that-nobody-has" no_page_goes_on_from_a_change_that_nobody_has: fence::loses_no_change_of_a_page_that_moves, sees [PageShippedUnflushed, CheckpointTooEarly];
            "only-verified-messages-move-the-clock" only_verified_messages_move_the_clock: fence::moves_no_clock_by_what_is_not_verified, sees [ObservedUnverified];
            "a-late-restore-point-makes-the-next-be-skipped" a_late_restore_point_makes_the_next_be_skipped: schedule::skips_what_a_late_point_overran, sees [TicksQueued];
            "separate-databases-are-fenced-causally" separate_databases_are_fenced_causally: separate::are_fenced_causally, sees [NoFence];
            "separate-databases-are-cut-by-scn" separate_databases_are_cut_by_scn: separate::are_cut_by_scn, sees [ScnNotObserved];
            "a-prepared-transaction-is-resolved-alike-on-every-node" a_prepared_transaction_is_resolved_alike_on_every_node: two_phase::is_resolved_alike_on_every_node, sees [PreparedLostAtRecovery, InDoubtUnresolved, OwnNodeDecides];
            "in-doubt-is-decided-by-what-lies-before-the-backup" in_doubt_is_decided_by_what_lies_before_the_backup: two_phase::is_decided_by_what_lies_before_the_backup, sees [EvidenceRangeIgnored, OwnNodeDecides];
            "what-is-in-doubt-is-resolved-whoever-crashes" what_is_in_doubt_is_resolved_whoever_crashes: two_phase::is_resolved_whoever_crashes, sees [PreparedLostAtRecovery, InDoubtUnresolved];
            "a-gid-that-was-used-before-is-left-in-doubt" a_gid_that_was_used_before_is_left_in_doubt: two_phase::is_left_if_its_gid_was_used_before, sees [GidReuseUnnoticed];
            "a-disk-lost-after-the-decision-is-staged-again" a_disk_lost_after_the_decision_is_staged_again: forward::stages_again_what_was_lost_before_it_opened, sees [LostIsNotStaged];
            "a-node-that-had-opened-is-not-put-back" a_node_that_had_opened_is_not_put_back: forward::refuses_to_put_back_what_had_opened, sees [OpenedStagedAgain];
            "a-clone-never-writes-to-its-source" a_clone_never_writes_to_its_source: copy::never_writes_to_its_source, sees [CloneKeepsIdentity, RepositoryUnchecked];
            "a-clone-holds-what-it-is-made-from" a_clone_holds_what_it_is_made_from: copy::holds_what_it_is_made_from, sees [ExpiryIgnoresRestores];
            "a-node-that-missed-the-incarnation-harms-nothing" a_node_that_missed_the_incarnation_harms_nothing: missed::harms_nothing, sees [MissedIsJoined];
            "a-restore-stops-on-arrival" a_restore_stops_on_arrival: forward::stops_on_arrival, sees [];
            "a-point-whose-wal-was-lost-is-no-target" a_point_whose_wal_was_lost_is_no_target: evidence::of_a_point_is_its_wal, sees [ReachUnchecked];
            "a-restored-node-owns-no-pins" a_restored_node_owns_no_pins: evidence::brings_no_pins_along, sees [PinsCaptured];
            "a-clock-that-ran-ahead-does-not-stop-its-successor" a_clock_that_ran_ahead_does_not_stop_its_successor: ahead::does_not_stop_its_successor, sees [OffsetNotStored, ScnFloorIgnored];
            "a-pin-that-would-fill-the-disk-ends-in-a-declared-hole" a_pin_that_would_fill_the_disk_ends_in_a_declared_hole: hole::is_declared_before_wal_is_let_go_of, sees [LetGoBeforeDeclared, HoleUnrecorded];
            "an-unsure-repository-is-settled" an_unsure_repository_is_settled: unsure::is_settled, sees [TimeoutTakenForFailure];
            "a-repository-out-of-reach-is-given-up-in-time" a_repository_out_of_reach_is_given_up_in_time: unsure::is_given_up_in_time, sees [RetryUnbounded];
            "anything-crashes-while-a-store-is-the-repository" anything_crashes_while_a_store_is_the_repository: chaos::spares_what_was_proven_on_an_object_store, sees [AckBeforeFlush];
            "an-object-store-ends-in-a-restore-whatever-strikes" an_object_store_ends_in_a_restore_whatever_strikes: trials::end_in_a_restore_from_an_object_store, sees [];
            "disks-that-fail-lose-nothing-acknowledged" disks_that_fail_lose_nothing_acknowledged: disks::lose_nothing_acknowledged, sees [ShortReadIgnored, ShortWriteIgnored, WriteFailureSwallowed, SyncedBehindAFailure];
            "damage-is-refused-or-without-effect" damage_is_refused_or_without_effect: damage::is_refused_or_without_effect, sees [PageUnchecked];
            "what-rots-is-found-wherever-it-is" what_rots_is_found_wherever_it_is: damage::is_found_wherever_it_is, sees [PageUnchecked, ChunkUnchecked, PieceUnchecked];
            "a-restore-reads-again-what-it-has-written" a_restore_reads_again_what_it_has_written: damage::is_read_again, sees [StagedUnread, RecoveredUnread];
            "the-cut-of-a-backup-lies-at-or-after-its-end" the_cut_of_a_backup_lies_at_or_after_its_end: capture::cuts_at_or_after_its_end, sees [CutBeforeEnd];
            "nothing-is-sealed-that-was-not-read-again" nothing_is_sealed_that_was_not_read_again: capture::reads_again_what_it_seals, sees [SealedUnread];
            "damaged-wal-hinders-only-what-needs-it" damaged_wal_hinders_only_what_needs_it: capture::goes_on_beside_damaged_wal, sees [AnyDamageHinders];
            "a-link-out-of-the-folder-is-refused" a_link_out_of_the_folder_is_refused: capture::refuses_links_that_lead_out, sees [LinksDropped];
            "a-file-that-shrinks-while-it-is-copied-is-refused" a_file_that_shrinks_while_it_is_copied_is_refused: capture::refuses_a_file_that_shrank, sees [ShrunkFileAccepted];
            "an-incremental-backup-is-whole" an_incremental_backup_is_whole: incremental::are_whole, sees [LastWalPageMissed, ChangesOfOneThread, GrownTailUnread, PatchForgetsThePatch, MagicIgnored];
            "an-incremental-backup-outlives-its-base" an_incremental_backup_outlives_its_base: incremental::outlive_their_base, sees [ExpiryTakesBasePacks];
            "an-incremental-backup-stays-in-its-incarnation" an_incremental_backup_stays_in_its_incarnation: incremental::go_on_from_their_own_incarnation, sees [BaseOfAnotherIncarnation];
            "a-damaged-base-is-refused" a_damaged_base_is_refused: incremental::are_refused_with_a_damaged_base, sees [];
            "digests-never-say-what-is-not-so" digests_never_say_what_is_not_so: digest::never_say_what_is_not_so, sees [DigestTrusted];
            "a-delta-restore-keeps-what-is-right" a_delta_restore_keeps_what_is_right: delta::keeps_what_is_right, sees [StagedByLength, DeltaKeepsExtraFiles, DeltaKeepsControl];
            "a-backup-keeps-its-rate" a_backup_keeps_its_rate: rate::is_kept_by_a_backup, sees [RateIgnored];
            "a-restore-keeps-its-rate" a_restore_keeps_its_rate: rate::is_kept_by_a_restore, sees [RateIgnored];
            "a-restore-does-not-take-a-folder-from-another" a_restore_does_not_take_a_folder_from_another: restore::leaves_the_folder_of_another_alone, sees [OtherRestoreIgnored];
            "expiry-is-refused-while-something-has-no-outcome" expiry_is_refused_while_something_has_no_outcome: expiry::is_refused_while_something_has_no_outcome, sees [ExpiryIgnoresBackups];
            "a-backup-ends-in-a-restore-whatever-strikes" a_backup_ends_in_a_restore_whatever_strikes: trials::end_in_a_restore_whatever_strikes, sees [NoFsyncBeforeSeal, FolderUnsynced, DrainNotAwaited, CheckpointUnsynced, SegmentNameUnsynced, RecycledOneTooMany, ReplacedNameUnsynced, PinUnwritten, StagedUnsynced, StagedByLength];
            "a-node-that-sends-its-files-is-restored-whatever-strikes" a_node_that_sends_its_files_is_restored_whatever_strikes: afar::is_restored_whatever_strikes, sees [StreamEndBelieved];
            "nodes-that-fight-and-fail-lose-nothing" nodes_that_fight_and_fail_lose_nothing: strife::loses_nothing_acknowledged, sees [ImageLeftOut, OldImageCounts, SeenBeforeDurable, GivenAwayRepeated, TornTakenForSound, RecordUnchecked];
            "every-history-is-kept-whatever-strikes" every_history_is_kept_whatever_strikes: voyage::keeps_every_history, sees [OlderSegmentUnsynced, PieceTimeoutBelieved, ExpiryTakesTheFloor, ReleaseNotLogged];
        }
    };
}

/// Stories that are too long for every test run, told when they are asked for by name.
pub const LONG: &[Scenario] =
    &[Scenario { name: "a-day-of-hourly-backups-ends-in-restores", story: stories::day::ends_in_restores, sees: &[] }];

macro_rules! registry {
    ($($name:literal $function:ident: $module:ident :: $story:ident, sees [$($bug:ident),*];)+) => {
        /// Every story, in the order in which they are told.
        pub const ALL: &[Scenario] = &[$(
            Scenario { name: $name, story: stories::$module::$story, sees: &[$(Bug::$bug),*] },
        )+];
    };
}

each_story!(registry);
