package main

// sysSyncfs is syncfs(2), which package syscall does not name on this architecture.
const sysSyncfs = 306
