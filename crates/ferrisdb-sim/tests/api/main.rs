//! The suite of the API: what a program may rely on, said once, and asked of every deployment.
//!
//! A case is a function that is given a [`Deployment`](deployment::Deployment): an empty database, and somebody else who uses it too. It speaks the public API
//! of the client and nothing else, so that it cannot know where the database is. The list at the end of this file makes a test of each case in each
//! deployment; its name says which: `cluster::ranges::limits_and_modes_cut_chunks`.
//!
//! ```text
//! in_memory        a node in this process, on a disk in memory; a new one for each case
//! in_a_directory   a node in this process, on a real directory, which is closed and opened again behind each case
//! served           one server behind a socket, asked through a router, as `ferrisdb::Database::connect` does
//! cluster          three processes of a cluster behind sockets, asked through a router; the other client is one of a follower's
//! ```
//!
//! The last two are started when the first case needs them, and serve all of them, one after the other: a case finds them emptied. Why it is so:
//! decision 0026. What needs a database that loses answers, fails on demand or counts questions stands in `ferrisdb-client`, over a double of the endpoint.

#![expect(clippy::cast_possible_truncation, reason = "tests cast small numbers")]

mod cases;
mod deployment;
#[path = "../served/mod.rs"]
mod servers;

/// A test of each case in each deployment. A case that is missing here is dead code, which clippy refuses.
macro_rules! suite {
    ($($module:ident { $($case:ident,)+ })+) => {
        suite!(@in in_memory $($module { $($case,)+ })+);
        suite!(@in in_a_directory $($module { $($case,)+ })+);
        suite!(@in served $($module { $($case,)+ })+);
        suite!(@in cluster $($module { $($case,)+ })+);
    };
    (@in $deployment:ident $($module:ident { $($case:ident,)+ })+) => {
        mod $deployment {
            $(mod $module {
                $(#[test]
                fn $case() {
                    crate::deployment::$deployment(crate::cases::$module::$case);
                })+
            })+
        }
    };
}

suite! {
    basics {
        a_transaction_reads_writes_and_commits,
        transactions_of_many_threads_happen_once,
        a_transaction_is_shared_between_threads,
        ranges_are_read_in_chunks,
    }
    commits {
        a_read_version_stays,
        a_read_version_can_be_set_once_before_it_is_asked_for,
        who_begins_sees_what_was_acknowledged,
        of_two_that_depend_on_each_other_one_commits,
        a_commit_tells_its_version_and_stamp,
        stamps_grow,
        a_commit_waits_for_the_reads_under_way,
        a_read_only_transaction_says_so,
        a_dropped_commit_goes_on,
        commits_without_ids_are_commits,
        all_priorities_begin,
    }
    conflicts {
        a_get_conflicts_with_its_key,
        a_get_key_conflicts_with_all_it_passed,
        a_chunk_conflicts_with_what_it_has_looked_at,
        own_writes_hide_what_is_read_through_them,
        writes_add_write_conflicts_unless_told_not_to,
        the_option_for_the_next_write_is_used_up_by_any,
        a_conflict_is_told_and_its_keys_are_reported,
    }
    directories {
        directories_are_created_opened_listed_moved_and_removed,
        layers_and_manual_prefixes_are_checked,
        partitions_hold_trees_of_their_own,
        keys_are_foundationdbs,
        many_prefixes_are_different_and_short,
    }
    dropping {
        a_dropped_future_leaves_nothing_behind,
        a_dropped_commit_happens_once,
    }
    limits {
        sizes_are_limited_where_they_are_written,
        system_and_special_keys_need_options,
        the_metadata_version_takes_a_versionstamp_and_nothing_else,
        atomic_operations_are_checked,
        a_transaction_that_is_too_large_does_not_commit,
        the_approximate_size_grows_with_every_write_and_conflict_range,
        estimates_split_points_and_addresses,
        a_key_that_cannot_exist_is_absent,
    }
    locks {
        a_locked_database_serves_those_who_know,
        read_lock_aware_reads_and_does_not_write,
        a_lock_is_known_by_its_id,
        a_transaction_from_before_the_lock_does_not_commit_after_it,
        a_set_read_version_is_not_asked_for,
        the_lock_is_a_system_key,
    }
    mapped {
        entries_lead_to_values_or_to_ranges,
        braces_are_escaped,
        wrong_mappers_and_entries_have_their_codes,
        what_is_not_supported_says_so,
        own_writes_are_not_read,
        it_conflicts_with_what_it_has_read,
        an_entry_that_leads_to_too_much_is_an_error,
    }
    own_writes {
        reads_see_writes_folded_over_the_snapshot,
        clears_hide_what_was_before_them,
        unreadable_keys_fail_the_reads_that_touch_them,
        the_range_of_a_versionstamped_key_is_unreadable,
        bypass_unreadable_reads_what_was_there,
        writes_around_a_versionstamped_key_keep_their_order,
        read_your_writes_can_be_disabled_before_anything_is_done,
        snapshot_reads_see_own_writes_as_the_counter_says,
        a_read_sees_the_writes_before_its_call,
    }
    ranges {
        selectors_resolve_over_the_merged_view,
        ranges_between_selectors,
        limits_and_modes_cut_chunks,
        limits_that_are_none_are_refused,
        chunks_continue_where_the_last_ended,
        single_cleared_keys_are_read_over,
    }
    special_keys {
        the_client_answers_for_the_database,
        reads_stay_in_a_module,
        conflict_ranges_can_be_read,
        writing_needs_an_option_and_a_module,
        tracing_can_be_set,
        a_snapshot_stays_as_it_was,
        some_system_keys_are_answered_by_the_client,
    }
    state_machine {
        what_has_failed_fails_until_a_reset,
        use_after_a_commit,
        timeouts_and_defaults,
        on_error_begins_again_or_gives_up,
        options_with_bad_values_are_deferred_and_unknown_ones_are_not,
        run_retries_what_passes_and_nothing_else,
    }
    tuples {
        tuples_are_read_back_in_order,
        a_stamped_tuple_is_the_commits,
    }
    watches {
        a_watch_fires_when_another_changes_the_value_after_the_commit,
        a_watch_reads_with_a_conflict,
        a_refused_commit_ends_its_watches,
        own_writes_count,
        a_watch_ends_with_a_transaction_that_does_not_commit,
        watches_are_counted_and_checked,
    }
}
