//! Processor time: what other programs do on the machine makes it a little longer, and not many times as long.

use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// What `work` answers, and the processor time of this process that it took. Nothing else may run beside it.
pub fn timed<T>(work: impl FnOnce() -> T) -> (T, Duration) {
    let begun = now();
    let value = work();
    (value, now().saturating_sub(begun))
}

fn now() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    Duration::new(seconds, u32::try_from(time.tv_nsec).unwrap_or(0))
}

/// The one in the middle; zero of none.
pub fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times.get(times.len() / 2).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_takes_processor_time_and_the_median_is_in_the_middle() {
        let (sum, took) = timed(|| (0..3_000_000_u64).fold(0, |sum, number| number.wrapping_mul(sum | 1)));
        assert!(took > Duration::ZERO, "{sum}");
        let ms = Duration::from_millis;
        assert_eq!(median(vec![ms(3), ms(1), ms(2)]), ms(2));
        assert_eq!(median(Vec::new()), Duration::ZERO);
    }
}
