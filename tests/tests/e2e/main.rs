//! End to end: real servers, real binaries, on each broker.

mod answers;
mod checks;
mod engine;
mod faults;
mod files;
mod forged;
mod leases;
mod models;
mod nested;
mod operations;
mod outputs;
mod placing;
mod roles;
mod scaling;
mod settings;

use xtask::broker::Kind;

/// One test per behaviour and broker.
macro_rules! on_each_broker {
    ($($area:ident: $($behaviour:ident),+ $(,)?;)+) => {
        on_each_broker!(nats Kind::Nats, $($area: $($behaviour),+;)+);
        on_each_broker!(rabbitmq Kind::RabbitMq, $($area: $($behaviour),+;)+);
    };
    ($module:ident $kind:expr, $($area:ident: $($behaviour:ident),+;)+) => {
        mod $module {
            use super::*;
            $($(
                #[tokio::test(flavor = "multi_thread")]
                async fn $behaviour() -> anyhow::Result<()> {
                    $area::$behaviour($kind).await
                }
            )+)+
        }
    };
}

on_each_broker! {
    answers:
        requests_are_batched_and_each_gets_its_own_answer,
        json_is_answered_in_json_and_only_the_wanted_outputs,
        expired_deadlines_cost_no_compute,
        a_deadline_that_passes_while_a_slot_is_busy_is_answered_at_once,
        a_version_that_is_not_served_and_a_lost_way_back_are_told,
        a_durable_answer_is_there_for_whoever_comes_later,
        a_pipeline_goes_through_each_model_and_a_failure_ends_it,
        a_pipeline_may_come_back_to_a_model_at_once;
    models:
        a_model_is_deployed_started_stopped_and_started_again,
        versions_change_back_and_forth_under_load_without_a_failed_request,
        a_version_that_does_not_load_leaves_the_old_one_serving,
        a_profile_applies_without_a_reload,
        a_stopped_model_refuses_if_its_profile_says_so,
        undeploying_drains_and_answers_what_waits,
        a_request_may_name_a_version,
        a_lost_signal_is_made_up_for_by_the_slow_look,
        a_command_that_works_with_another_registry_than_the_hosts_says_so,
        limits_of_a_stopped_model_change_its_queue,
        an_archive_carries_models_to_another_registry,
        a_package_may_come_as_an_archive_and_a_profile_from_an_editor,
        a_version_that_does_not_fit_beside_the_old_one_waits,
        a_version_that_does_not_fit_may_replace_the_old_one_and_back;
    placing:
        an_idle_slot_makes_room_for_a_model_that_has_none,
        a_package_that_no_host_can_load_is_known_before_anybody_waits,
        of_two_workers_under_one_name_one_takes_no_work;
    scaling:
        from_no_slots_to_an_answer_and_back_to_none,
        a_burst_spreads_over_hosts_and_ends_there,
        a_number_that_changes_while_a_model_loads_is_taken_up,
        slots_of_a_host_that_dies_go_elsewhere,
        a_standby_takes_over_from_a_leader_that_is_killed,
        a_leader_that_slept_changes_nothing_when_it_wakes,
        a_host_is_drained_under_load_and_used_again,
        a_host_that_is_cut_off_is_replaced_and_told_to_drop_when_it_is_back,
        an_outage_of_the_broker_takes_no_slot_away,
        each_part_does_its_work_with_the_permissions_of_its_role,
        a_command_is_told_what_fits_nowhere_and_when_it_fits_again;
    forged:
        what_is_forged_locks_no_host_and_ends_nothing,
        a_made_up_host_counts_for_no_more_than_a_machine_may_have,
        a_made_up_host_that_serves_nobody_loses_its_model_to_one_that_is_there;
    leases:
        devices_are_lent_for_a_command_and_reclaimed,
        a_lease_ends_with_all_that_its_command_started,
        a_lease_lasts_from_when_it_is_lent_until_its_host_is_drained,
        a_holder_that_is_cut_off_ends_its_command;
    files:
        digits_from_a_file_are_recognised_in_order,
        failed_rows_go_to_their_own_file_with_line_and_reason,
        standard_input_goes_to_standard_output,
        an_interrupted_run_is_resumed_without_asking_again,
        one_request_is_answered_on_the_spot,
        what_is_wrong_is_said_at_once_and_by_name,
        infinities_and_nans_stay_what_they_are_in_every_width,
        a_file_is_not_held_in_memory;
    outputs:
        a_closed_pipe_ends_a_command_quietly_and_a_full_disk_is_an_error,
        nothing_that_a_run_did_not_make_is_replaced_or_removed,
        a_run_that_could_not_write_says_so_and_is_gone_on_with,
        a_bad_row_costs_its_neighbours_nothing,
        a_deadline_ends_the_wait_for_a_model_that_nobody_serves;
    operations:
        a_worker_may_start_before_its_broker_and_says_what_it_waits_for,
        the_queue_command_counts_what_waits,
        the_python_producer_of_the_documentation_gets_its_answers,
        configuration_faults_are_told_with_their_keys,
        a_second_signal_ends_at_once;
    settings:
        a_program_takes_the_deployments_settings_and_says_what_it_would_have_had;
    faults:
        a_worker_killed_in_the_middle_of_batches_loses_nothing,
        sigterm_under_load_loses_nothing_and_charges_no_attempt,
        a_broker_restarted_under_load_loses_nothing,
        a_poison_request_fails_alone,
        requests_that_kill_workers_take_no_others_with_them,
        a_lost_queue_is_made_again_and_the_worker_says_so,
        a_request_whose_worker_died_each_time_ends_as_a_dead_letter,
        a_full_queue_refuses_and_loses_nothing_that_it_took,
        thousands_of_malformed_bodies_harm_nobody_else;
}
