package main

// sysSyncfs is syncfs(2).
const sysSyncfs = 267
