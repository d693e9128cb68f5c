//! One suite for every executor: what a step may rely on, whoever makes its sandbox.

mod suite;

/// Writes the whole suite for one executor, made by an expression of type `Option<Fixture>`.
macro_rules! conformance {
    ($name:ident, $fixture:expr, [$($module:ident :: {$($test:ident),+ $(,)?}),+ $(,)?]) => {
        mod $name {
            $($(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $test() {
                    if let Some(fixture) = $fixture {
                        crate::suite::$module::$test(&fixture).await;
                    }
                }
            )+)+
        }
    };
}

macro_rules! for_every_executor {
    ($tests:tt) => {
        conformance!(sandbox, crate::suite::fixture::Fixture::sandbox(), $tests);
        conformance!(runc, crate::suite::fixture::Fixture::runtime("runc"), $tests);
        conformance!(crun, crate::suite::fixture::Fixture::runtime("crun"), $tests);
    };
}

for_every_executor!([
    process::{
        exit_codes_and_output,
        signals_become_128_plus_n,
        is_pid_1_in_its_own_namespace,
        environment_is_exactly_the_given_one,
        working_directory_is_made_for_the_user,
        users_and_groups_come_from_the_root,
        stdin_is_streamed,
        large_output_arrives_whole,
        a_missing_command_is_named,
        a_file_that_is_no_program_is_told_apart,
        an_unknown_user_is_refused,
        background_children_end_with_the_step,
        control_sends_signals,
        a_signal_without_handler_is_felt,
        a_second_process_joins_or_is_refused,
        a_terminal_is_given_or_refused,
        standard_output_can_be_reopened_by_a_user,
        many_at_once,
    },
    files::{
        overlay_changes_land_in_the_upper_directory,
        readonly_root_refuses_writes,
        binds_are_readonly_or_not,
        a_file_can_be_bound,
        a_part_of_an_overlay_can_be_bound,
        secrets_are_files_on_tmpfs,
        sockets_can_be_bound,
        tmpfs_has_its_size,
        stubs_are_taken_away,
        targets_never_lead_out_of_the_root,
        a_missing_source_is_named,
        mounts_inside_mounts,
    },
    world::{
        hosts_and_resolver_are_generated,
        network_none_has_only_loopback,
        host_name_is_set,
        limits_are_set,
        shared_memory_has_its_size,
        kernel_files_are_masked,
        devices_are_the_usual_ones,
        host_devices_cannot_be_opened,
        the_ca_bundle_is_seen_and_leaves_nothing,
    },
    security::{
        the_host_is_out_of_reach,
        capabilities_are_the_default_ones,
        users_have_no_capabilities,
        insecure_has_all_capabilities,
        forbidden_calls_fail_with_eperm,
        unknown_and_structured_calls_fail_with_enosys,
        thirty_two_bit_calls_work_and_are_filtered,
        memory_limit_is_kept_and_reported,
        process_limit_is_kept,
    },
    ending::{
        cancel_kills_everything_promptly,
        cancel_before_the_start,
        dropping_the_run_kills_it,
    },
]);
