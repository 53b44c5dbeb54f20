//! The registry, proved on each kind of store that can be had: a folder, NATS, and a real server that speaks S3.

mod caching;
mod deploying;
mod intruding;
mod moving;
mod rig;

use rig::{Kind, Rig};

/// One test per behaviour and store.
macro_rules! on_each_store {
    ($($area:ident: $($behaviour:ident),+ $(,)?;)+) => {
        on_each_store!(folder Kind::Folder, $($area: $($behaviour),+;)+);
        on_each_store!(nats Kind::Nats, $($area: $($behaviour),+;)+);
        on_each_store!(s3 Kind::S3, $($area: $($behaviour),+;)+);
    };
    ($module:ident $kind:expr, $($area:ident: $($behaviour:ident),+;)+) => {
        mod $module {
            use super::*;
            $($(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $behaviour() -> anyhow::Result<()> {
                    $area::$behaviour(&Rig::start($kind).await?).await
                }
            )+)+
        }
    };
}

on_each_store! {
    deploying:
        a_published_version_is_complete_and_never_changes,
        versions_without_a_name_are_counted_and_the_same_is_not_published_twice,
        a_half_uploaded_version_is_not_visible_and_its_upload_goes_on,
        of_two_writers_one_gets_a_conflict_that_names_the_other,
        history_only_grows_and_the_newest_is_the_truth,
        a_profile_that_does_not_fit_is_not_written,
        a_removed_model_leaves_nothing;
    caching:
        a_package_is_fetched_once_and_a_damaged_copy_again,
        what_is_damaged_in_the_registry_is_an_error_that_names_the_file,
        the_least_recently_used_goes_first;
    moving:
        an_archive_brings_back_versions_and_history,
        an_archive_brings_nothing_that_its_index_does_not_name,
        a_large_file_arrives_whole;
}
