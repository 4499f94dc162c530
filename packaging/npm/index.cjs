"use strict";

module.exports = require("./lib/protection.cjs");
