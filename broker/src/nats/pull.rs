//! How much to ask of each lane: a pure function. The bound that it keeps is exact: over all lanes, what was asked for and
//! what is unsettled never exceed the credit. Only orders sent under a larger credit come on top, until they end.

/// What is known of a lane.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct LaneState {
    /// Asked for whenever it comes, and not delivered yet.
    pub standing: usize,
    /// Asked for from what waits, and not delivered yet. The broker soon says that there is no more.
    pub backlog: usize,
    /// Delivered and not settled.
    pub unsettled: usize,
    /// Requests that wait on the broker, as its last delivery said.
    pub pending: u64,
}

impl LaneState {
    /// All that was asked for.
    pub(super) fn asked(&self) -> usize {
        self.standing + self.backlog
    }
}

/// What to ask for next.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Order {
    /// To be answered whenever a request arrives.
    pub standing: usize,
    /// To be answered now from what is waiting, or not at all.
    pub backlog: usize,
}

/// Shares of the credit that an idle lane keeps on order, so that a request in it is delivered at once, whatever the
/// other lanes do. High, normal, low; in sixteenths.
const STANDING: [usize; 3] = [2, 4, 1];
/// However large the credit, an idle lane keeps no more than this on order: with a backlog there are larger orders.
const STANDING_MOST: [usize; 3] = [16, 64, 8];
/// Shares in which lanes with a backlog divide the rest.
const WEIGHT: [usize; 3] = [12, 3, 1];
/// Turns at being handed out, while each lane has something.
pub(super) const TURNS: [i64; 3] = [12, 3, 1];

/// The least credit that lets every lane have an order: less is raised to this.
pub(super) const LEAST_CREDIT: usize = 3;

pub(super) fn plan(credit: usize, lanes: &[LaneState; 3]) -> [Order; 3] {
    let credit = credit.max(LEAST_CREDIT);
    let used: usize = lanes.iter().map(|lane| lane.asked() + lane.unsettled).sum();
    // If those of an idle lane counted, the others would wait for their end.
    let left_over: usize =
        lanes.iter().enumerate().map(|(index, lane)| lane.standing.saturating_sub(standing(credit, index))).sum();
    let mut free = (credit + left_over).saturating_sub(used);
    let shares = shares(credit, lanes);
    // What a lane may still ask for: a busy one up to its share, an idle one its standing order whatever it holds.
    let room = |index: usize, order: &Order| {
        let lane = &lanes[index];
        let held = if is_busy(lane) { lane.backlog + lane.unsettled } else { 0 };
        shares[index].saturating_sub(held + lane.standing + order.standing)
    };
    let mut orders = [Order::default(); 3];
    // A lane without an order is deaf: first one order each, and where it does not suffice, to those that have work.
    let mut urgency = [0, 1, 2];
    urgency.sort_by_key(|index| lanes[*index].pending == 0);
    for index in urgency {
        if lanes[index].standing == 0 && room(index, &orders[index]) > 0 && free > 0 {
            orders[index].standing = 1;
            free -= 1;
        }
    }
    for (index, lane) in lanes.iter().enumerate() {
        let standing = standing(credit, index);
        // Top up at half, not at each delivery.
        if lane.standing <= standing / 2 {
            let missing = (standing - lane.standing).saturating_sub(orders[index].standing);
            let order = missing.min(room(index, &orders[index])).min(free);
            if worth(order, missing) {
                orders[index].standing += order;
                free -= order;
            }
        }
    }
    for (index, lane) in lanes.iter().enumerate() {
        // One at a time: the broker's word that there is no more then ends exactly that one.
        if !is_busy(lane) || lane.backlog > 0 {
            continue;
        }
        let on_order = lane.standing + orders[index].standing;
        let waiting = usize::try_from(lane.pending).unwrap_or(usize::MAX).saturating_sub(on_order);
        let order = room(index, &orders[index]).min(waiting).min(free);
        if worth(order, shares[index].saturating_sub(standing(credit, index))) || on_order == 0 {
            orders[index].backlog = order;
            free -= order;
        }
    }
    orders
}

/// Whether more would be asked for if all that was delivered were settled: if not, nothing waits for that.
pub(super) fn waits_for_settlements(credit: usize, lanes: &[LaneState; 3]) -> bool {
    let settled = lanes.map(|lane| LaneState { unsettled: 0, ..lane });
    plan(credit, &settled).iter().any(|order| *order != Order::default())
}

/// More waits than comes by standing orders, or did when the order that is out was sent.
fn is_busy(lane: &LaneState) -> bool {
    lane.backlog > 0 || usize::try_from(lane.pending).unwrap_or(usize::MAX) > lane.standing
}

/// How the credit is divided: idle lanes keep their standing orders, busy ones share the rest by weight, whether or not their
/// orders are out: the others would take what is theirs meanwhile.
fn shares(credit: usize, lanes: &[LaneState; 3]) -> [usize; 3] {
    let busy = lanes.each_ref().map(is_busy);
    let weights: usize = (0..3).filter(|index| busy[*index]).map(|index| WEIGHT[index]).sum();
    let idle: usize = (0..3).filter(|index| !busy[*index]).map(|index| standing(credit, index)).sum();
    [0, 1, 2].map(|index| match busy[index] {
        // Rounded up, so that there is at least one for each.
        true => (credit.saturating_sub(idle) * WEIGHT[index]).div_ceil(weights).max(1),
        false => standing(credit, index),
    })
}

/// What an idle lane keeps on order.
fn standing(credit: usize, lane: usize) -> usize {
    (credit * STANDING[lane] / 16).clamp(1, STANDING_MOST[lane])
}

/// A small order costs as much as a large one: it waits until at least half of what is wanted is free.
fn worth(order: usize, wanted: usize) -> bool {
    order > 0 && 2 * order >= wanted
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn lane(standing: usize, unsettled: usize, pending: u64) -> LaneState {
        LaneState { standing, backlog: 0, unsettled, pending }
    }

    #[test]
    fn idle_lanes_each_keep_a_standing_order() {
        let orders = plan(64, &[lane(0, 0, 0); 3]);
        assert_eq!(orders.map(|order| order.standing), [8, 16, 4]);
        assert_eq!(orders.map(|order| order.backlog), [0, 0, 0]);
    }

    #[test]
    fn a_lane_with_a_backlog_gets_what_the_others_do_not_use() {
        let orders = plan(64, &[lane(8, 0, 0), lane(0, 16, 1000), lane(4, 0, 0)]);
        assert_eq!(orders[1], Order { standing: 16, backlog: 20 }, "{orders:?}");
    }

    #[test]
    fn with_a_backlog_everywhere_the_high_lane_gets_most_and_none_gets_nothing() {
        let orders = plan(64, &[lane(0, 0, 1000); 3]);
        let total = orders.map(|order| order.standing + order.backlog);
        assert_eq!(total.iter().sum::<usize>(), 64);
        assert!(total[0] > total[1] && total[1] > total[2] && total[2] > 0, "{total:?}");
    }

    #[test]
    fn a_lane_whose_order_is_out_keeps_its_share() {
        let high = LaneState { standing: 8, backlog: 20, unsettled: 0, pending: 1000 };
        let orders = plan(64, &[high, lane(1, 11, 1000), lane(1, 3, 1000)]);
        assert_eq!(orders, [Order::default(); 3]);
    }

    #[test]
    fn with_little_credit_no_lane_is_deaf() {
        for credit in 0..6 {
            let orders = plan(credit, &[lane(0, 0, 50); 3]);
            assert!(orders.iter().all(|order| order.standing > 0), "{credit}: {orders:?}");
        }
    }

    #[test]
    fn a_smaller_credit_does_not_wait_for_the_old_orders_of_idle_lanes() {
        let orders = plan(12, &[lane(4, 0, 0), lane(64, 0, 0), lane(0, 0, 100)]);
        assert!(orders[2].standing + orders[2].backlog > 5, "{orders:?}");
    }

    proptest! {
        #[test]
        fn the_credit_is_never_exceeded(
            credit in 0..2000_usize,
            lanes in prop::array::uniform3((0..500_usize, 0..500_usize, 0..500_usize, 0..5000_u64)),
        ) {
            let lanes = lanes
                .map(|(standing, backlog, unsettled, pending)| LaneState { standing, backlog, unsettled, pending });
            let used: usize = lanes.iter().map(|lane| lane.asked() + lane.unsettled).sum();
            let ordered: usize = plan(credit, &lanes).iter().map(|order| order.standing + order.backlog).sum();
            let credit = credit.max(LEAST_CREDIT);
            let old: usize = (0..3).map(|index| lanes[index].standing.saturating_sub(standing(credit, index))).sum();
            prop_assert!(ordered == 0 || used + ordered <= credit + old);
        }

        #[test]
        fn nothing_is_ordered_after_settlements_that_nothing_waited_for(
            credit in 0..300_usize,
            lanes in prop::array::uniform3((0..70_usize, 0..70_usize, 0..100_usize, 0..200_u64)),
            settled in prop::array::uniform3(0.0..1.0_f64),
        ) {
            let mut lanes = lanes
                .map(|(standing, backlog, unsettled, pending)| LaneState { standing, backlog, unsettled, pending });
            // As it is once what is due has been ordered.
            let orders = plan(credit, &lanes);
            for (lane, order) in lanes.iter_mut().zip(orders) {
                lane.standing += order.standing;
                lane.backlog += order.backlog;
            }
            let waits = waits_for_settlements(credit, &lanes);
            for (lane, settled) in lanes.iter_mut().zip(settled) {
                lane.unsettled -= (lane.unsettled as f64 * settled) as usize;
            }
            prop_assert!(waits || plan(credit, &lanes) == [Order::default(); 3]);
        }

        #[test]
        fn with_free_credit_and_a_backlog_something_is_on_order(
            credit in 3..200_usize,
            pending in prop::array::uniform3(0..500_u64),
            unsettled in prop::array::uniform3(0..200_usize),
        ) {
            let mut lanes = [0, 1, 2].map(|index| lane(0, unsettled[index], pending[index]));
            let used: usize = unsettled.iter().sum();
            let orders = plan(credit, &lanes);
            for (lane, order) in lanes.iter_mut().zip(orders) {
                lane.standing += order.standing;
                lane.backlog += order.backlog;
            }
            let asked: usize = lanes.iter().map(LaneState::asked).sum();
            prop_assert!(used >= credit || asked > 0);
        }
    }
}
