// Protects this process: `require("opik-offline/auto")`, before the Opik SDK makes a client.
"use strict";

require("./lib/protection.cjs").protect();
