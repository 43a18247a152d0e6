"""From a trained student to a package for the device: conversion, quantization, the gate, the package, its runtime."""
