//! The contract of the broker seam, proved on real servers. Every promise is asserted through the seam alone,
//! once per broker; what only one broker has is in a file of its own.

mod answering;
mod consuming;
mod leading;
mod nats_attacks;
mod nats_roles;
mod rabbitmq_holders;
mod rabbitmq_recovering;
mod rabbitmq_roles;
mod recovering;
mod rig;
mod roles;
mod settings;
mod settling;
mod submitting;
mod watching;

use rig::{AmqpRig, NatsRig, Rig};

/// One test per promise and broker. RabbitMQ takes its time to start: the tests share one, but for those that end it.
macro_rules! contract {
    ($($rabbitmq:ident $area:ident: $($promise:ident),+ $(,)?;)+) => {
        mod nats {
            use super::*;
            $($(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $promise() -> anyhow::Result<()> {
                    let mut rig = NatsRig::start()?;
                    $area::$promise(&mut rig as &mut dyn Rig).await
                }
            )+)+
        }

        mod rabbitmq {
            use super::*;
            $($(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $promise() -> anyhow::Result<()> {
                    let mut rig = AmqpRig::$rabbitmq()?;
                    $area::$promise(&mut rig as &mut dyn Rig).await
                }
            )+)+
        }
    };
}

contract! {
    start submitting:
        a_repeated_submission_is_stored_once,
        a_request_asked_again_after_its_answer_was_lost_is_answered,
        thousands_may_submit_at_once_on_a_new_connection,
        a_full_queue_an_unknown_model_and_a_large_body_are_three_errors,
        a_request_whose_deadline_has_passed_is_refused,
        an_unknown_model_costs_only_those_who_ask_for_it,
        limits_change_in_place,
        headers_that_cannot_be_served_are_told_apart,
        what_only_a_worker_or_the_broker_may_say_is_not_taken_from_a_producer;
    start consuming:
        the_credit_is_never_exceeded,
        two_hosts_share_a_backlog,
        the_high_lane_is_preferred_and_none_starves,
        a_request_arrives_whose_lane_was_idle,
        raising_the_credit_asks_for_more,
        whoever_waits_is_told_of_each_settled_request,
        lowering_the_credit_leaves_no_lane_deaf,
        stopping_gives_back_what_was_on_its_way,
        a_consumer_that_lost_its_queue_says_so_and_goes_on_once_it_is_made_again,
        what_is_received_beside_a_lost_lane_is_not_charged,
        what_a_consumer_held_when_a_lane_was_lost_is_not_charged;
    start settling:
        done_removes,
        a_request_is_redelivered_when_its_consumer_dies,
        a_retry_comes_back_after_its_delay_and_is_charged,
        delayed_retries_do_not_hold_up_fresh_work,
        giving_back_charges_no_attempt_and_keeps_the_place,
        a_dead_letter_tells_why_and_the_original_is_gone,
        what_cannot_be_stored_as_a_dead_letter_is_not_removed,
        a_dead_letter_too_large_to_keep_is_kept_without_its_body,
        headers_that_leave_no_room_can_be_tried_again_and_kept,
        a_request_of_long_headers_becomes_a_dead_letter_at_once,
        a_hold_is_renewed_over_a_long_run;
    start answering:
        an_answer_reaches_the_inbox_that_asked,
        an_answer_may_not_go_elsewhere_than_to_an_inbox,
        a_stored_answer_is_copied_to_the_inbox_that_its_request_names_and_only_to_an_inbox,
        results_that_are_removed_are_gone_or_go_in_their_time;
    start watching:
        depth_counts_what_waits_what_runs_and_how_old_it_is,
        what_the_broker_does_not_say_is_unknown,
        signals_reach_those_who_listen,
        a_question_is_answered_or_nobody_is_there;
    start settings:
        who_comes_first_says_the_settings_until_somebody_changes_them,
        a_deployment_without_settings_gets_those_that_it_has,
        a_hold_time_changes_under_a_worker_that_runs_or_is_none,
        a_queue_is_full_of_bytes_and_leaves_others_their_room,
        where_there_is_not_room_for_all_the_first_leaves_some;
    start leading:
        another_leads_with_a_greater_term_when_the_holder_dies;
    alone leading:
        a_resigned_office_is_free_at_once;
    alone submitting:
        a_request_is_stored_before_its_receipt;
    alone answering:
        a_result_is_written_once_and_survives_a_restart;
    start recovering:
        a_broker_that_is_emptied_is_noticed_and_served_again;
    alone recovering:
        both_ends_go_on_after_the_broker_restarts,
        a_service_may_start_before_its_broker,
        a_command_gives_up_and_names_the_url;
}
