import protection from "./lib/protection.cjs";

export const { protect, unprotect, status, flush, ProtectionError } = protection;
