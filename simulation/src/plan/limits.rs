//! Limits of the machines by their names.

use std::time::Duration;

use shoal_proto::limits::Limits;

use super::Span;

/// Something a limit can be set from.
trait Setting: Sized {
    fn from_toml(value: &toml::Value) -> Option<Self>;
}

macro_rules! setting_by_integer {
    ($($kind:ty),*) => {
        $(impl Setting for $kind {
            fn from_toml(value: &toml::Value) -> Option<Self> {
                value.as_integer().and_then(|value| value.try_into().ok())
            }
        })*
    };
}

setting_by_integer!(usize, u64, u32, u8);

impl Setting for Duration {
    fn from_toml(value: &toml::Value) -> Option<Self> {
        value.as_str().and_then(|value| value.parse().ok()).map(|Span(span)| span)
    }
}

/// Sets a limit by its name.
pub(super) fn set_limit(limits: &mut Limits, name: &str, value: &toml::Value) -> Result<(), &'static str> {
    macro_rules! by_name {
        ($($field:ident),* $(,)?) => {
            match name {
                $(stringify!($field) => {
                    limits.$field = Setting::from_toml(value).ok_or("a whole number, or a time like \"5ms\"")?;
                    Ok(())
                })*
                _ => Err("no such limit"),
            }
        };
    }
    by_name!(
        neighbours_max,
        remotes_max,
        pulls_max,
        node_pulls_max,
        pull_bytes_max,
        pulls_per_peer_max,
        uploads_max,
        asks_waiting_max,
        releases_max,
        releases_per_peer_max,
        release_timeout,
        release_chunks_min,
        urgent_chunks,
        urgent_pulls_max,
        endgame_chunks,
        pull_timeout_min,
        pull_timeout_first,
        got_delay,
        hints,
        sign_delay,
        sign_states,
        strikes_max,
        join_timeout,
        trackers_max,
        heartbeat,
        lease_heartbeat,
        lease_timeout,
        lease_stall,
        lease_trial,
        lease_trial_max,
        lease_handover,
        holders_patience,
        fallback_window,
        stall_timeout,
        origin_tries,
        origin_backoff,
        retry_after_max,
        held_idle,
        fetches_max,
        sample,
        sample_more,
        members_max,
        tracked_max,
        joins_per_peer_max,
        zones_max,
        member_timeout,
        starved_patience,
        complete_timeout,
    )
}
