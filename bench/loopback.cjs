// Required before a Node server that has no option for its address: what it listens on is loopback.
"use strict";
const net = require("node:net");
const listen = net.Server.prototype.listen;
net.Server.prototype.listen = function (...given) {
  const [first] = given;
  if (first !== null && typeof first === "object") {
    return listen.call(this, { ...first, host: "127.0.0.1" }, ...given.slice(1));
  }
  return listen.call(this, first, "127.0.0.1", ...given.slice(1).filter((each) => typeof each === "function"));
};
