// Protects this process: `import "opik-offline/auto"` before everything else, or `node --import opik-offline/auto app.mjs`.
import protection from "./lib/protection.cjs";

protection.protect();
