//! Names that the world still reads. To go as soon as it reads `dht`.

use std::ops::Deref;

use super::{DhtPlan, Plan};

impl Deref for Plan {
    type Target = DhtPlan;

    fn deref(&self) -> &DhtPlan {
        &self.dht
    }
}
